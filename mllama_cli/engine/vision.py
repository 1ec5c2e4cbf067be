"""Encode images to the keys and values that the cross-attention layers read, each image once."""

from collections import OrderedDict, deque
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mllama_cli.core.answerer import text_only
from mllama_cli.core.conversation import ImagePart
from mllama_cli.engine.cuda.vision_graphs import VisionGraphs
from mllama_cli.engine.device import batch_stream
from mllama_cli.engine.forward import Network
from mllama_cli.model.cache import CrossKVCache, LayerKV
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

    def __init__(self, network: Network, processor: MllamaProcessor, device: torch.device) -> None:
        self.device = device
        self._network, self._processor = network, processor
        self._graphs: VisionGraphs | None = None
        self._encoded: torch.cuda.Event | None = None
        """Recorded after the last image."""

    @property
    def layers(self) -> int:
        """The number of layers of the vision tower."""
        config = require_vision(self._network).config.vision_config
        return config.num_hidden_layers + config.num_global_layers if config else 0

    def tiles(self, image: ImagePart) -> ImageTiles:
        """Decode an image and cut it into tiles. Raise ImageError, or UsageError if the model is text-only."""
        return self._processor.tiles(image)

    def encode(self, pixel_values: Tensor, aspect_ratio_id: int) -> list[LayerKV]:
        """Encode one image's tiles [tiles, 3, T, T] to keys and values for each cross-attention layer."""
        return result_of(self.steps(pixel_values, aspect_ratio_id))

    @torch.inference_mode()
    def steps(self, pixel_values: Tensor, aspect_ratio_id: int) -> Generator[int, None, list[LayerKV]]:
        """Do as ``encode`` does and, on a CPU, yield the number of finished layers after each."""
        network = require_vision(self._network)
        if self.device.type != "cuda":
            return (yield from network.model.encode_image_steps(pixel_values, aspect_ratio_id))
        if self._graphs is None:
            self._graphs = VisionGraphs(network, self.device)
        pixels = pixel_values if pixel_values.is_cuda else pixel_values.pin_memory()
        # Graphs share their memory, so an image waits for the one before, which may be on another stream.
        current = torch.cuda.current_stream(self.device)
        if self._encoded is None:
            self._encoded = torch.cuda.Event()
        else:
            current.wait_event(self._encoded)
        try:
            return self._graphs.encode(pixels, aspect_ratio_id)
        finally:
            self._encoded.record(current)


class ImageCache:
    """Encoded images by the digest of their content, in order of use.

    Args:
        limit: bytes that ``trim`` leaves.
        overlap: on a GPU, encode on a side stream, so that encoding returns at once.
    """

    def __init__(self, encoder: VisionEncoder, limit: int = 0, *, overlap: bool = False) -> None:
        self.limit = limit
        self.nbytes = 0
        self._encoder = encoder
        self._overlap = overlap and encoder.device.type == "cuda"
        self._encoded: OrderedDict[str, list[LayerKV]] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None
        self._done: dict[str, torch.cuda.Event] = {}
        self._under_way: deque[torch.cuda.Event] = deque()

    def __contains__(self, digest: str) -> bool:
        return digest in self._encoded

    @property
    def launched(self) -> int:
        """The number of images that a GPU is encoding or has still to encode."""
        while self._under_way and self._under_way[0].query():
            self._under_way.popleft()
        return len(self._under_way)

    def ready(self, digest: str) -> bool:
        """Return whether the device has encoded this image."""
        if digest not in self._encoded:
            return False
        return digest not in self._done or self._done[digest].query()

    def get(self, digest: str) -> list[LayerKV]:
        """Return an encoded image, for which the current stream waits, but not the host."""
        self._encoded.move_to_end(digest)
        layers = self._encoded[digest]
        if digest in self._done:
            current = torch.cuda.current_stream(self._encoder.device)
            current.wait_event(self._done[digest])
            for pair in layers:
                for tensor in pair:
                    tensor.record_stream(current)
        return layers

    def get_group(self, digests: Sequence[str]) -> list[LayerKV]:
        """Return one or several encoded images joined into one, of which there is one copy for all that ask."""
        key = group_key(digests)
        if key not in self._encoded:
            joined = CrossKVCache.from_images([[self.get(digest) for digest in digests]])
            assert joined is not None
            self._add(key, joined.layers)
        return self.get(key)

    def encode_steps(self, image: ImagePart, tiles: ImageTiles | None = None) -> Iterator[int]:
        """Encode an image, decoded unless ``tiles`` are given; on a CPU, yield the number of finished layers."""
        if tiles is None:
            tiles = self._encoder.tiles(image)
        with self._side_stream() as stream:  # nothing is yielded on a GPU
            layers = yield from self._encoder.steps(tiles.pixel_values, tiles.aspect_ratio_id)
            self._add(image.digest, layers)
            if stream is not None:
                self._done[image.digest] = event = torch.cuda.Event()
                event.record(stream)
                self._under_way.append(event)

    def claim_memory(self, size: int) -> None:
        """Let torch take ``size`` bytes from the driver, for images to come."""
        with self._side_stream():
            torch.empty(size, dtype=torch.uint8, device=self._encoder.device)

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
        self._done.pop(digest, None)
        return True

    def clear(self) -> None:
        self._encoded.clear()
        self._done.clear()
        self.nbytes = 0

    def _add(self, digest: str, layers: list[LayerKV]) -> None:
        self._encoded[digest] = layers
        self.nbytes += encoded_bytes(layers)

    @contextmanager
    def _side_stream(self) -> Iterator[torch.cuda.Stream | None]:
        if not self._overlap:
            yield None
            return
        device = self._encoder.device
        if self._stream is None:
            self._stream = batch_stream(device, "image")
            self._stream.wait_stream(torch.cuda.current_stream(device))  # weights may still be uploading
        with torch.cuda.stream(self._stream):
            yield self._stream


def group_key(digests: Sequence[str]) -> str:
    """Return the name under which images that are seen together are cached."""
    return "+".join(digests)


def encoded_bytes(layers: list[LayerKV]) -> int:
    """Return the bytes of one encoded image."""
    return sum(keys.nbytes + values.nbytes for keys, values in layers)
