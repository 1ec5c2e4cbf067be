"""Round weights to integers and scales, without calibration data.

``rtn`` rounds to nearest with the scale absmax / (2^(bits-1) - 0.5): on Gaussian weights in groups of 128, 4 bits, a
relative squared error of 1.23%. ``search`` also tries smaller and slightly larger scales, each with its least-squares
refit, and keeps the best: 1.02%, and on heavy tails (Student t with 5 degrees of freedom) 2.16% instead of 2.63%.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mllama_cli.kernels.packed import PackedWeight, pack
from mllama_cli.quantization.schemes import Scheme
from mllama_cli.system.interrupts import ThreadPool

Method = Literal["search", "rtn"]
METHODS: tuple[Method, ...] = ("search", "rtn")

CLIPS = tuple(0.45 + 0.042 * step for step in range(16))
"""Scales that the search tries, relative to rtn's. More of them gain less than 1%."""
REFITS = 2

_CPU_BLOCK = 1 << 17  # weights at once: a block's float32 copies stay in the cache, which is twice as fast
_GPU_BLOCK = 1 << 24
_SMALLEST = 1e-30


class NotFiniteError(ValueError):
    """The matrix holds NaN or infinity."""


@dataclass(frozen=True)
class Rounded:
    """A quantized matrix, the sum of its squared errors, and of its squared weights."""

    weight: PackedWeight
    error: float
    energy: float


def quantize_matrix(weight: Tensor, scheme: Scheme, method: Method = "search") -> Rounded:
    """Quantize a matrix [out, in] on its device; scales come in its dtype. Raises NotFiniteError.

    Each group is rounded on its own: a matrix quantized in several slices of rows gives the same numbers.
    """
    rows, inputs = weight.shape
    if not scheme.divides(inputs):
        raise ValueError(f"groups of {scheme.group_size} do not divide {inputs} inputs")
    on_cpu = weight.device.type == "cpu"
    step = max(1, (_CPU_BLOCK if on_cpu else _GPU_BLOCK) // inputs)
    blocks = [weight[start : start + step] for start in range(0, rows, step)]

    def work(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _round_block(block, scheme, method)

    if on_cpu:
        with _one_thread_each() as threads, ThreadPool(threads) as pool:
            done = pool.results(work, blocks)
    else:
        done = [work(block) for block in blocks]
    packed, scales, sums = zip(*done, strict=True)
    error, energy = torch.stack(sums).double().sum(0).tolist()
    return Rounded(PackedWeight(torch.cat(packed), torch.cat(scales), (rows, inputs), scheme.bits), error, energy)


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Limit torch to one thread for blocks in parallel: its threads would synchronize at every small operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _round_block(weight: Tensor, scheme: Scheme, method: Method) -> tuple[Tensor, Tensor, Tensor]:
    """Return packed words, scales, and the sums of squared errors and of squared weights."""
    inputs = weight.shape[1]
    groups = weight.float().reshape(-1, scheme.group_size or inputs)
    q, scale = _round(groups, scheme.bits, weight.dtype, method)
    packed = pack(q.view(-1, inputs).to(torch.int8), scheme.bits)
    energy = groups.square().sum()
    error = q.mul_(scale).sub_(groups).square_().sum()
    return packed, scale.view(-1, scheme.groups(inputs)).to(weight.dtype), torch.stack((error, energy))


def _round(groups: Tensor, bits: int, dtype: torch.dtype, method: Method) -> tuple[Tensor, Tensor]:
    """Round float32 [groups, size] to integers, as float32, and scales [groups, 1] that ``dtype`` holds exactly."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    top = torch.linalg.vector_norm(groups, torch.inf, dim=-1, keepdim=True)
    if not bool(torch.isfinite(top).all()):
        raise NotFiniteError
    widest = (top / (high + 0.5)).clamp_min_(_SMALLEST)
    q, scratch = torch.empty_like(groups), torch.empty_like(groups)

    def refit(unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least-squares scale for the integers in q, and how much of the squared sum it explains."""
        along = torch.mul(unit, q, out=scratch).sum(-1, keepdim=True)
        square = torch.mul(q, q, out=scratch).sum(-1, keepdim=True).clamp_min_(0.25)
        return along / square, along * along / square

    scale = widest
    if method == "search":
        unit = groups / widest
        best = torch.zeros_like(top)
        share = torch.ones_like(top)
        for clip in CLIPS:
            torch.mul(unit, 1 / clip, out=q).round_().clamp_(low, high)
            refitted, explained = refit(unit)
            share = torch.where(explained > best, refitted, share)
            best = torch.maximum(best, explained)
        for _ in range(REFITS):
            torch.div(unit, share, out=q).round_().clamp_(low, high)
            # A group of zeros has nothing to refit.
            share = torch.where(top > 0, refit(unit)[0], share)
        scale = share * widest
    # The scale is rounded first, so that the integers fit the scale that a reader multiplies by.
    scale = scale.to(dtype).float().clamp_min_(torch.finfo(dtype).tiny)
    torch.div(groups, scale, out=q).round_().clamp_(low, high)
    return q, scale
