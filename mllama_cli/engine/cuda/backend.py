"""Decode with our kernels in captured graphs, or fall back to plain torch with a reason."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import torch

from mllama_cli.core.events import Event, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.device import is_out_of_memory
from mllama_cli.engine.forward import DecodeInput, Decoder, Network
from mllama_cli.engine.sampling import ChosenToken
from mllama_cli.kernels.available import strict_kernels, triton_available

if TYPE_CHECKING:
    from mllama_cli.engine.cuda.decode import GraphDecoder


class CapturedDecoder(Decoder):
    """Decode on a GPU from captured graphs. Each answer in progress has a graph decoder of its own.

    Triton is imported when first needed, usually in the background while weights load (engine/cuda/warmup.py).
    """

    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(network)
        self._dtype, self._device = dtype, device
        self._idle: list[GraphDecoder] = []
        self._batch_builds = False

    def prepare(self, *, with_images: bool, sampling: Sampling) -> Iterator[Event]:
        """Build kernels and capture graphs for an answer, unless done; on failure set ``fallback_reason``."""
        if self.fallback_reason:
            return
        from mllama_cli.engine.cuda.operands import unsupported_reason

        self.fallback_reason = unsupported_reason(self._network, self._dtype, self._device)
        if self.fallback_reason:
            return
        from mllama_cli.engine.cuda.build_cache import Work, first_time, remember
        from mllama_cli.engine.cuda.self_check import MAX_RELATIVE_ERROR

        work: Work = "images" if with_images else "text"
        new = first_time(self._network, self._device, work)
        if new:
            yield Notice("Building kernels for this GPU, once: about 20 seconds")
        try:
            error = self.build(with_images=with_images, sampling=sampling, check=new)
            if error > MAX_RELATIVE_ERROR:
                self._fall_back(f"kernels do not compute here what the network does: {error:.0%} apart")
                return
        except Exception as error:  # such as no C compiler or an old driver; torch still works
            if is_out_of_memory(error) or strict_kernels():
                raise
            last_line = (str(error).strip().splitlines() or [repr(error)])[-1]
            self._fall_back(f"kernels could not be built: {last_line}")
            return
        remember(self._network, self._device, work)

    def build(self, *, with_images: bool, sampling: Sampling, check: bool) -> float:
        """Build kernels and capture graphs for an answer; return their relative error if it is to be checked, else 0.

        A decoder whose error is too large is not used.
        """
        from mllama_cli.engine.cuda.self_check import MAX_RELATIVE_ERROR, relative_error

        decoder = self._take()
        decoder.prepare(with_images=with_images, sampling=sampling)
        error = relative_error(decoder, self._network, with_images=with_images) if check else 0.0
        if error <= MAX_RELATIVE_ERROR:
            self._idle.append(decoder)
        return error

    def tokens(self, start: DecodeInput) -> Generator[ChosenToken]:
        if self.fallback_reason:
            yield from super().tokens(start)
            return
        decoder = self._take()
        try:
            yield from decoder.tokens(start)
        finally:
            self._idle.append(decoder)

    def prepare_batch(self) -> Iterator[Event]:
        if not triton_available(self._device):
            return
        from mllama_cli.engine.cuda.build_cache import first_time

        self._batch_builds = first_time(self._network, self._device, "batch")
        if self._batch_builds:
            yield Notice("The first captions on this GPU build kernels, once: about 10 seconds")

    def batch_stepped(self) -> None:
        if self._batch_builds:
            from mllama_cli.engine.cuda.build_cache import remember

            self._batch_builds = False
            remember(self._network, self._device, "batch")

    def _fall_back(self, reason: str) -> None:
        if strict_kernels():
            raise RuntimeError(reason)
        self.fallback_reason = reason

    def _take(self) -> "GraphDecoder":
        from mllama_cli.engine.cuda.decode import GraphDecoder

        return self._idle.pop() if self._idle else GraphDecoder(self._network, self._dtype, self._device)
