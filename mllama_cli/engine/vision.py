"""Encode images to the keys and values that the cross-attention layers read, each image once."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterator, Sequence

import torch
from torch import Tensor

from mllama_cli.core.answerer import text_only
from mllama_cli.core.conversation import ImagePart
from mllama_cli.engine.cuda.vision_graphs import VisionGraphs
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.leading import join_images, round_images
from mllama_cli.engine.parallel.team import Team
from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.image_kv import Float8KV, ImageKV, LayerKV
from mllama_cli.model.layers import result_of
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.processing.image_processor import ImageTiles
from mllama_cli.processing.processor import MllamaProcessor


def require_vision(network: Network) -> MllamaForConditionalGeneration:
    """Return the network if it accepts images. Raise UsageError if it does not."""
    if not isinstance(network, MllamaForConditionalGeneration):
        raise text_only()
    return network


class VisionEncoder:
    """Run the vision tower: on a GPU from captured graphs, on a CPU layer by layer."""

    def __init__(
        self, network: Network, processor: MllamaProcessor, device: torch.device, team: Team | None = None
    ) -> None:
        self.device, self._team = device, team
        self._network, self._processor = network, processor
        self._graphs: VisionGraphs | None = None
        self._encoded: torch.cuda.Event | None = None
        """Recorded after the last image."""
        self._turn = threading.Lock()
        self._prepared = 0
        """Numbers of tiles, from 1 on, whose graphs ``prepare`` has captured."""

    @property
    def layers(self) -> int:
        """The number of layers of the vision tower."""
        config = require_vision(self._network).config.vision_config
        return config.num_hidden_layers + config.num_global_layers if config else 0

    def tiles(self, image: ImagePart) -> ImageTiles:
        """Decode an image and cut it into tiles. Raise ImageError, or UsageError if the model is text-only."""
        return self._processor.tiles(image)

    def join(self, batch: Sequence[Sequence[ImageKV]]) -> CrossKVCache | None:
        """Join encoded images, as ``CrossKVCache.from_images`` does."""
        return CrossKVCache.from_images(batch) if self._team is None else join_images(self._team, batch)

    @torch.inference_mode()
    def rounded(self, layers: Sequence[LayerKV]) -> Float8KV:
        """Round an encoded image to 8 bits, as ``Float8KV.of`` does."""
        return Float8KV.of(layers) if self._team is None else round_images(self._team, layers)

    def prepare(self) -> bool:
        """Capture the graphs for another number of tiles; return whether there was one. Load the weights first."""
        config = require_vision(self._network).config.vision_config
        if self.device.type != "cuda" or config is None or self._prepared == config.max_num_tiles:
            return False
        self._prepared += 1
        ratio = next(id_ for id_ in range(1, 1 + config.max_num_tiles**2) if config.tiles(id_) == self._prepared)
        pixels = torch.zeros(self._prepared, config.num_channels, config.image_size, config.image_size)
        for _ in range(2):  # the second is captured
            self.encode(pixels, ratio)
        return True

    def encode(self, pixel_values: Tensor, aspect_ratio_id: int) -> list[LayerKV]:
        """Encode one image's tiles [tiles, 3, T, T] to keys and values for each cross-attention layer."""
        return result_of(self.steps(pixel_values, aspect_ratio_id))

    @torch.inference_mode()
    def steps(self, pixel_values: Tensor, aspect_ratio_id: int) -> Generator[int, None, list[LayerKV]]:
        """Do as ``encode`` does, and yield the number of finished layers: on a CPU after each, on a GPU after some.

        Another thread's image has to wait until this one is done or the generator is closed.
        """
        network = require_vision(self._network)
        if self.device.type != "cuda":
            return (yield from network.model.encode_image_steps(pixel_values, aspect_ratio_id))
        with self._turn:
            if self._graphs is None:
                self._graphs = VisionGraphs(network, self.device, states_only=self._team is not None)
            pixels = pixel_values if pixel_values.is_cuda else pixel_values.pin_memory()
            # Graphs share their memory, so an image waits for the one before, which may be on another stream.
            current = torch.cuda.current_stream(self.device)
            if self._encoded is None:
                self._encoded = torch.cuda.Event()
            else:
                current.wait_event(self._encoded)
            try:
                return (yield from self._graphs.steps(pixels, aspect_ratio_id))
            finally:
                self._encoded.record(current)


class ImageCache:
    """Encoded images by the digest of their content, in order of use.

    Args:
        limit: bytes that ``trim`` leaves.
        float8: whether to keep images in 8 bits.
    """

    def __init__(self, encoder: VisionEncoder, limit: int = 0, *, float8: bool = False) -> None:
        self.limit = limit
        self.nbytes = 0
        self._encoder, self._float8 = encoder, float8
        self._encoded: OrderedDict[str, ImageKV] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._encoded

    def get(self, digest: str) -> ImageKV:
        self._encoded.move_to_end(digest)
        return self._encoded[digest]

    def get_group(self, digests: Sequence[str]) -> ImageKV:
        """Return one or several encoded images joined into one, of which there is one copy for all that ask."""
        key = group_key(digests)
        if key not in self._encoded:
            joined = self.join([digests])
            assert joined is not None
            self._add(key, joined.layers)
        return self.get(key)

    def join(self, batch: Sequence[Sequence[str]]) -> CrossKVCache | None:
        """Return the images of each conversation of a batch, by digest, as one cache; None if there are none."""
        return self._encoder.join([[self.get(digest) for digest in digests] for digests in batch])

    def encode_steps(self, image: ImagePart, tiles: ImageTiles | None = None) -> Iterator[int]:
        """Encode an image, decoded unless ``tiles`` are given; yield the number of finished layers now and then."""
        if tiles is None:
            tiles = self._encoder.tiles(image)
        pixels = tiles.pixel_values_on(self._encoder.device)
        layers = yield from self._encoder.steps(pixels, tiles.aspect_ratio_id)
        self._add(image.digest, self._encoder.rounded(layers) if self._float8 else layers)

    def trim(self, kept: Collection[str] = ()) -> None:
        """Drop the least recently used images, down to the limit, but none of ``kept``."""
        while self.nbytes > self.limit and self.evict(kept):
            pass

    def evict(self, kept: Collection[str] = ()) -> bool:
        """Drop the least recently used image that is not in ``kept``; return whether there was one."""
        digest = next((digest for digest in self._encoded if digest not in kept), None)
        if digest is None:
            return False
        self.nbytes -= encoded_bytes(self._encoded.pop(digest))
        return True

    def clear(self) -> None:
        self._encoded.clear()
        self.nbytes = 0

    def _add(self, digest: str, layers: ImageKV) -> None:
        self._encoded[digest] = layers
        self.nbytes += encoded_bytes(layers)


def group_key(digests: Sequence[str]) -> str:
    """Return the name under which images that are seen together are cached."""
    return "+".join(digests)


def encoded_bytes(layers: ImageKV) -> int:
    """Return the bytes of one encoded image."""
    if isinstance(layers, Float8KV):
        return layers.nbytes
    return sum(keys.nbytes + values.nbytes for keys, values in layers)
