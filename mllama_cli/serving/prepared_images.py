"""Decode images in worker processes, each once for all requests that come with it, and keep the latest."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.image_processor import ImageTiles
from mllama_cli.processing.prepared import PreparedImage
from mllama_cli.processing.processor import MllamaProcessor

T = TypeVar("T")

DECODE_SECONDS = 20.0
"""Time for one image, once a worker has taken it."""
MAX_KEPT_BYTES = 64 * 2**20
"""Pixels of images that are kept: 17 of four tiles."""
MAX_TILES_BYTES = 2**30
"""Tiles that wait for the engine, which makes those of further requests itself."""


class NotKeptError(LookupError):
    """An image has to be decoded first."""


class PreparedImages:
    """Images as the model sees them. A chat sends its images again at each turn: the latest need not be decoded again.

    Any number of threads may use it at once. Of those that ask for the same image one decodes it.
    """

    def __init__(self, limit: int = MAX_KEPT_BYTES) -> None:
        self.decoder = Decoder(seconds=DECODE_SECONDS)
        self._limit, self._nbytes = limit, 0
        self._kept: OrderedDict[str, PreparedImage] = OrderedDict()
        self._tiles: WeakValueDictionary[str, ImageTiles] = WeakValueDictionary()
        self._coming: dict[tuple[str, str], Future[Any]] = {}
        self._lock = threading.Lock()

    def kept(self, image: ImagePart) -> PreparedImage:
        """Return an image that was prepared lately. Raise NotKeptError for others."""
        with self._lock:
            found = self._find(image.digest)
        if found is None:
            raise NotKeptError
        return found

    def prepare(self, image: ImagePart, config: ImageProcessorConfig) -> PreparedImage:
        """Return an image with its canvas and without its file, decoded unless it is kept. Raise ImageError."""
        return self._once(
            ("canvas", image.digest),
            lambda: self._find(image.digest),
            lambda: self.decoder.decode(image, config).without_file(),
            self._keep,
        )

    def tiles(self, image: ImagePart, processor: MllamaProcessor, *, pinned: bool) -> ImageTiles | None:
        """Return the tiles of a prepared image, in memory that a GPU can read if ``pinned``; None if too many wait."""

        def make() -> ImageTiles:
            tiles = processor.tiles(image)
            return replace(tiles, pixel_values=tiles.pixel_values.pin_memory()) if pinned else tiles

        def keep(made: ImageTiles) -> None:
            self._tiles[image.digest] = made

        if sum(tiles.pixel_values.nbytes for tiles in list(self._tiles.values())) >= MAX_TILES_BYTES:
            return self._tiles.get(image.digest)
        return self._once(("tiles", image.digest), lambda: self._tiles.get(image.digest), make, keep)

    def _once(
        self, key: tuple[str, str], find: Callable[[], T | None], make: Callable[[], T], keep: Callable[[T], None]
    ) -> T:
        """Return what is found, or else what one of the threads that ask makes and keeps."""
        with self._lock:
            if (found := find()) is not None:
                return found
            coming: Future[T] | None = self._coming.get(key)
            mine: Future[T] = Future()
            if coming is None:
                self._coming[key] = mine
        if coming is not None:
            return coming.result()
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            keep(made)
            del self._coming[key]
        mine.set_result(made)
        return made

    def _find(self, digest: str) -> PreparedImage | None:
        if digest in self._kept:
            self._kept.move_to_end(digest)
        return self._kept.get(digest)

    def _keep(self, image: PreparedImage) -> None:
        self._kept[image.digest] = image
        self._nbytes += image.canvas.pixels.nbytes
        while self._nbytes > self._limit:
            _, oldest = self._kept.popitem(last=False)
            self._nbytes -= oldest.canvas.pixels.nbytes
