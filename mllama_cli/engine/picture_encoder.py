"""Pictures to cross-attention keys and values; equal pictures are encoded once."""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from mllama_cli.core.errors import UsageError
from mllama_cli.engine import streams
from mllama_cli.model.cache import LayerKV
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.processing.image_processor import ImageTiles

if TYPE_CHECKING:
    from mllama_cli.engine.engine import Engine


class PictureEncoder:
    """Remembers the pictures used last, up to ``limit`` bytes, by the digest of their content.

    On a GPU they are encoded in a stream of their own, beside whatever the caller's stream does: ``encode`` returns at
    once.
    """

    def __init__(self, engine: "Engine", limit: int) -> None:
        self.engine = engine
        self.limit = limit
        self._encoded: OrderedDict[str, list[LayerKV]] = OrderedDict()
        self._bytes = 0
        self._stream: torch.cuda.Stream | None = None
        self._done: dict[str, torch.cuda.Event] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._encoded

    def ready(self, digest: str) -> bool:
        """Whether nobody has to wait for this picture any more."""
        return digest not in self._done or self._done[digest].query()

    def get(self, digest: str) -> list[LayerKV]:
        """A picture that was encoded; the caller's stream waits for it, the host does not."""
        self._encoded.move_to_end(digest)
        layers = self._encoded[digest]
        if digest in self._done:
            current = torch.cuda.current_stream(self.engine.device)
            current.wait_event(self._done[digest])
            for pair in layers:
                for tensor in pair:
                    tensor.record_stream(current)
        return layers

    @torch.inference_mode()
    def encode(self, pictures: Mapping[str, ImageTiles]) -> None:
        """Encode pictures by digest, one after the other: one of several tiles keeps any device busy."""
        if not pictures:
            return
        network = self.engine.network
        if not isinstance(network, MllamaForConditionalGeneration):
            raise UsageError("This model is text-only: it cannot see images", "Use a Llama 3.2 Vision checkpoint.")
        with self._beside() as stream:
            for digest, tiles in pictures.items():
                layers = self.engine.fast.encode_image(network, tiles.pixel_values, tiles.aspect_ratio_id)
                self._encoded[digest] = layers
                self._bytes += size(layers)
                if stream is not None:
                    self._done[digest] = event = torch.cuda.Event()
                    event.record(stream)

    @contextmanager
    def _beside(self) -> Iterator[torch.cuda.Stream | None]:
        device = self.engine.device
        if device.type != "cuda":
            yield None
            return
        if self._stream is None:
            self._stream = streams.pictures(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # weights may still be on their way
        with torch.cuda.stream(self._stream):
            yield self._stream

    def trim(self, kept: Collection[str] = ()) -> None:
        """Forget the pictures that were not used for longest, down to the limit, but none of ``kept``."""
        for digest in list(self._encoded):
            if self._bytes <= self.limit:
                return
            if digest not in kept:
                self._bytes -= size(self._encoded.pop(digest))
                self._done.pop(digest, None)

    def clear(self) -> None:
        self._encoded.clear()
        self._done.clear()
        self._bytes = 0


def size(layers: list[LayerKV]) -> int:
    """Bytes of one encoded picture."""
    return sum(keys.nbytes + values.nbytes for keys, values in layers)
