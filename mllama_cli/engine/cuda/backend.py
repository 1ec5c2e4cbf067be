"""Read and decode with our kernels in captured graphs, or fall back to plain torch with a reason."""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mllama_cli.core.events import Event, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.pass_shapes import PASS_TOKENS, PassShape, fits, shape_of
from mllama_cli.engine.device import is_out_of_memory
from mllama_cli.engine.forward import DecodeInput, Decoder, Network, may_force
from mllama_cli.engine.sampling import ChosenToken
from mllama_cli.kernels.available import strict_kernels, triton_available
from mllama_cli.kernels.sdpa import has_decode_attention
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import ImageSpan

if TYPE_CHECKING:
    from mllama_cli.engine.cuda.decode import GraphDecoder
    from mllama_cli.engine.cuda.passes import CapturedPasses


class CapturedDecoder(Decoder):
    """Read short prompts and decode on a GPU from captured graphs. Each answer in progress has its own graph decoder.

    Triton is imported when first needed, usually in the background while weights load (engine/cuda/warmup.py).
    """

    _feeds_forced = True
    """Whether tokens that a grammar leaves no choice about may go through passes."""

    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(network)
        self._dtype, self._device = dtype, device
        self._idle: list[GraphDecoder] = []
        self._batch_builds = False
        self._passes: CapturedPasses | None = None
        self._pass_failed = False
        self._prompts: Counter[PassShape] = Counter()
        """How often a prompt of each shape was to be read."""

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
        if self._feeds_forced and may_force(sampling):
            from mllama_cli.engine.cuda.decode import FORCED_TOKENS

            yield from self._prepare_pass(shape_of(FORCED_TOKENS, with_images=with_images))

    def prepare_feed(self, count: int, *, with_images: bool) -> Iterator[Event]:
        """Capture a pass for so many ids the second time: a process that reads one prompt is done sooner without."""
        if not self._can_capture_passes():
            return
        if count <= PASS_TOKENS[-1]:
            shape = shape_of(count, with_images=with_images)
            self._prompts[shape] += 1
            if self._prompts[shape] > 1:
                yield from self._prepare_pass(shape)

    def feed(
        self, ids: Sequence[int], cache: KVCache, cross: CrossKVCache | None, spans: Sequence[ImageSpan]
    ) -> Tensor:
        if self._passes is not None:
            from mllama_cli.engine.cuda.passes import Piece, shape_for

            pieces = [Piece(ids, cache, cross, spans)]
            if fits([(cache.lengths[0], len(ids))]) and shape_for(pieces) in self._passes:
                return self._passes.run(pieces)
        return super().feed(ids, cache, cross, spans)

    def _can_capture_passes(self) -> bool:
        head_dim = self._network.language_model.config.head_dim
        return not self._pass_failed and has_decode_attention(self._device, self._dtype, head_dim)

    def _prepare_pass(self, shape: PassShape) -> Iterator[Event]:
        """Build kernels of a pass and capture it, unless done; if that fails, the network reads as before."""
        if not self._can_capture_passes() or (self._passes is not None and shape in self._passes):
            return
        from mllama_cli.engine.cuda.build_cache import first_time, remember
        from mllama_cli.engine.cuda.self_check import MAX_RELATIVE_ERROR, relative_error_of_pass

        work = f"{shape.rows} tokens{' and images' * shape.with_images}"
        new = first_time(self._network, self._device, work)
        if new:
            yield Notice(f"Building kernels to read up to {shape.rows} tokens, once: a few seconds")
        try:
            if self._passes is None:
                self._passes = self._make_passes()
            self._passes.capture(shape)
            error = relative_error_of_pass(self._passes, self._network, shape) if new else 0.0
            if not error <= MAX_RELATIVE_ERROR:
                raise RuntimeError(f"kernels do not compute here what the network does: {error:.0%} apart")
        except Exception as error:  # such as too little memory: what has been captured goes on
            if strict_kernels() and not is_out_of_memory(error):
                raise
            self._pass_failed = True
            if self._passes is not None and not is_out_of_memory(error):
                self._passes.forget()
            return
        remember(self._network, self._device, work)

    def _make_passes(self) -> "CapturedPasses":
        from mllama_cli.engine.cuda.passes import CapturedPasses

        return CapturedPasses(self._network, self._dtype, self._device)

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
            yield from decoder.tokens(start, self._passes if self._feeds_forced else None)
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
