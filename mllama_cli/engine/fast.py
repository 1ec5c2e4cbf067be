"""Decoding by whatever is fastest here: captured graphs of our kernels on a GPU that has them, else plain torch."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mllama_cli.core.events import Event, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.forward import DecodeInput, Network, decode
from mllama_cli.engine.sampling import ChosenToken
from mllama_cli.kernels.ops import triton_available
from mllama_cli.model.cache import LayerKV
from mllama_cli.model.mllama import MllamaForConditionalGeneration

if TYPE_CHECKING:
    from mllama_cli.engine.cuda.decode import GraphDecoder
    from mllama_cli.engine.cuda.vision_graphs import TowerGraphs


class FastDecoding:
    """The choice for one engine, and its idle graph decoders: one for each answer that is being given at a time."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.obstacle = "" if device.type == "cuda" else "no CUDA device"
        self._dtype, self._device = dtype, device
        self._idle: list[GraphDecoder] = []
        self._tower: TowerGraphs | None = None
        self._encoded: torch.cuda.Event | None = None
        """Reached when the last picture is encoded."""

    def encode_image(
        self, network: MllamaForConditionalGeneration, pixel_values: Tensor, aspect_ratio_id: int
    ) -> list[LayerKV]:
        """One image's tiles -> keys and values for each cross-attention layer.

        Streams may differ from image to image: each waits for the one before, since graphs share their memory.
        """
        if self._device.type != "cuda":
            return network.model.encode_image(pixel_values, aspect_ratio_id)
        from mllama_cli.engine.cuda.vision_graphs import TowerGraphs

        if self._tower is None:
            self._tower = TowerGraphs(network, self._device)
        pixels = pixel_values if pixel_values.is_cuda else pixel_values.pin_memory()
        current = torch.cuda.current_stream(self._device)
        if self._encoded is None:
            self._encoded = torch.cuda.Event()
        else:
            current.wait_event(self._encoded)
        try:
            return self._tower.encode(pixels, aspect_ratio_id)
        finally:
            self._encoded.record(current)

    def prepare(self, network: Network, *, sees: bool, sampling: Sampling) -> Iterator[Event]:
        """Build and capture what an answer needs, once. Where that fails, ``obstacle`` says why, and torch decodes."""
        if self.obstacle:
            return
        from mllama_cli.engine.cuda.operands import unsupported_reason

        self.obstacle = unsupported_reason(network, self._dtype, self._device)
        if self.obstacle:
            return
        from mllama_cli.engine.cuda.build_cache import Work, first_time, remember
        from mllama_cli.engine.cuda.self_check import MAX_RELATIVE_ERROR, relative_error

        work: Work = "pictures" if sees else "text"
        new = first_time(network, self._device, work)
        if new:
            yield Notice("Building kernels for this GPU, once: about 20 seconds")
        try:
            decoder = self._take(network)
            decoder.prepare(with_images=sees, sampling=sampling)
            if new and (distance := relative_error(decoder, network, with_images=sees)) > MAX_RELATIVE_ERROR:
                self.obstacle = f"kernels do not compute here what the network does: {distance:.0%} apart"
                return
            self._idle.append(decoder)
        except Exception as error:  # no C compiler, a driver too old: whatever it is, torch still works
            if isinstance(error, torch.OutOfMemoryError):
                raise
            last_line = (str(error).strip().splitlines() or [repr(error)])[-1]
            self.obstacle = f"kernels could not be built: {last_line}"
            return
        remember(network, self._device, work)

    def prepare_batch(self, network: Network) -> Iterator[Event]:
        """Say once that the first batch builds kernels as it needs them."""
        if not triton_available(self._device):
            return
        from mllama_cli.engine.cuda.build_cache import first_time, remember

        if first_time(network, self._device, "batch"):
            yield Notice("The first captions on this GPU build kernels, once: about 10 seconds")
            remember(network, self._device, "batch")

    def decode(self, network: Network, start: DecodeInput) -> Generator[ChosenToken]:
        """As engine/forward.py's ``decode``."""
        if self.obstacle:
            yield from decode(network, start)
            return
        decoder = self._take(network)
        try:
            yield from decoder.tokens(start)
        finally:
            self._idle.append(decoder)

    def _take(self, network: Network) -> "GraphDecoder":
        from mllama_cli.engine.cuda.decode import GraphDecoder

        return self._idle.pop() if self._idle else GraphDecoder(network, self._dtype, self._device)
