"""Decode images in worker processes, each once for all requests that come with it, and keep the latest."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.prepared import PreparedImage

DECODE_SECONDS = 20.0
"""Time for one image, once a worker has taken it."""
MAX_KEPT_BYTES = 64 * 2**20
"""Pixels of images that are kept: 17 of four tiles."""
BEYOND_KEPT = 4
"""Images that are decoded or encoded meanwhile, for whose pixels memory is taken ahead."""


class PreparedImages:
    """Images as the model sees them. A chat sends its images again at each turn: the latest need not be decoded again.

    Any number of threads may use it at once. Of those that ask for the same image one decodes it.
    """

    def __init__(self, limit: int = MAX_KEPT_BYTES, *, buffer: Callable[[int], memoryview] | None = None) -> None:
        """``buffer`` makes the memory for the pixels of an image."""
        self.decoder = Decoder(seconds=DECODE_SECONDS, buffer=buffer)
        self._limit, self._nbytes, self._buffer = limit, 0, buffer
        self._kept: OrderedDict[str, PreparedImage] = OrderedDict()
        self._coming: dict[str, Future[PreparedImage]] = {}
        self._lock = threading.Lock()

    def start(self, config: ImageProcessorConfig) -> None:
        """Start a worker and take the memory for pixels, so that the first images need not wait for these.

        Pinning memory for one image takes milliseconds; torch keeps what was pinned for the next.
        """
        self.decoder.start()
        if self._buffer is not None:
            size = config.max_image_tiles * 3 * config.tile_size**2
            taken = [self._buffer(size) for _ in range(self._limit // size + BEYOND_KEPT)]
            taken.clear()

    def find(self, digest: str) -> PreparedImage | None:
        """Return an image that was prepared lately; None for others."""
        with self._lock:
            return self._find(digest)

    def prepare(self, image: ImagePart, config: ImageProcessorConfig) -> PreparedImage:
        """Return an image with its canvas and without its file, decoded unless it is kept. Raise ImageError."""
        mine: Future[PreparedImage] = Future()
        with self._lock:
            if (found := self._find(image.digest)) is not None:
                return found
            coming = self._coming.setdefault(image.digest, mine)
        if coming is not mine:
            return coming.result()
        try:
            made = self.decoder.decode(image, config).without_file()
        except BaseException as error:
            with self._lock:
                del self._coming[image.digest]
            mine.set_exception(error)
            raise
        with self._lock:
            self._keep(made)
            del self._coming[image.digest]
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
