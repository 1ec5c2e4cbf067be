"""Pictures to cross-attention keys and values; equal pictures are encoded once."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from mllama_cli.core.errors import UsageError
from mllama_cli.model.cache import LayerKV
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.processing.image_processor import ImageTiles

if TYPE_CHECKING:
    from mllama_cli.engine.load import Engine


class PictureEncoder:
    """Remembers the pictures used last, up to ``limit`` bytes, by the digest of their content."""

    def __init__(self, engine: "Engine", limit: int) -> None:
        self.engine = engine
        self.limit = limit
        self._encoded: OrderedDict[str, list[LayerKV]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._encoded

    def get(self, digest: str) -> list[LayerKV]:
        self._encoded.move_to_end(digest)
        return self._encoded[digest]

    @torch.inference_mode()
    def encode(self, pictures: Mapping[str, ImageTiles]) -> None:
        """Encode pictures by digest; those with equally many tiles go through the vision tower together."""
        if not pictures:
            return
        network = self.engine.network
        if not isinstance(network, MllamaForConditionalGeneration):
            raise UsageError("This model is text-only: it cannot see images", "Use a Llama 3.2 Vision checkpoint.")
        by_tiles: dict[int, list[str]] = {}
        for digest, tiles in pictures.items():
            by_tiles.setdefault(tiles.num_tiles, []).append(digest)
        together = self.engine.work.pictures
        groups = [
            digests[start : start + together]
            for digests in by_tiles.values()
            for start in range(0, len(digests), together)
        ]
        for digests in groups:
            pixels = torch.stack([pictures[digest].pixel_values for digest in digests])
            ids = [pictures[digest].aspect_ratio_id for digest in digests]
            for digest, layers in zip(digests, network.model.encode_images(pixels, ids), strict=True):
                self._encoded[digest] = layers
                self._bytes += size(layers)

    def trim(self) -> None:
        """Forget the pictures that were not used for longest, down to the limit."""
        while self._bytes > self.limit and self._encoded:
            _, layers = self._encoded.popitem(last=False)
            self._bytes -= size(layers)

    def clear(self) -> None:
        self._encoded.clear()
        self._bytes = 0


def size(layers: list[LayerKV]) -> int:
    """Bytes of one encoded picture."""
    return sum(keys.nbytes + values.nbytes for keys, values in layers)
