"""The vision tower's attention: our kernel where it runs, else torch's in a form that needs no mask.

Tokens are ordered [real | padding]. Padding does not see padding, and the last keys may count several times: they stand
for as many equal tiles.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

from mllama_cli.kernels.available import image_kernels_available, runs_right
from mllama_cli.kernels.ops import pad_heads
from mllama_cli.kernels.sdpa import encoder_attention

GLUON_TRITON = "3.6."
"""Versions of Triton whose Gluon, which still changes, is the one our faster kernel was written for and tested with."""


def tower_attention(qkv: Tensor, real: int, counted: int, repeats: int, *, rows: int) -> Tensor:
    """Attend from queries, keys and values [N, tokens, 3, heads, D] -> [N, rows, heads * D], the first ``rows`` tokens.

    The first ``real`` tokens see all keys, of which those from ``counted`` on count ``repeats`` times; the others see
    the keys of the first ``real`` tokens. ``rows`` is ``real`` or all tokens.
    """
    if not torch.is_grad_enabled() and (kernel := tower_kernel(qkv.device, qkv.dtype, qkv.shape[-1])):
        return kernel(qkv, real, counted, repeats, rows=rows)
    return two_calls(qkv, real, counted, repeats, rows=rows)


class TowerKernel(Protocol):
    def __call__(self, qkv: Tensor, real: int, counted: int, repeats: int, *, rows: int) -> Tensor: ...


@cache
def tower_kernel(device: torch.device, dtype: torch.dtype, dim: int) -> TowerKernel | None:
    """Return the fastest of our kernels that runs here and computes what torch does, by trying it; None without one."""
    if dim != 80 or not image_kernels_available(device, dtype):
        return None
    import triton

    kernels = [_gluon_kernel] if triton.__version__.startswith(GLUON_TRITON) else []
    kernels.append(_triton_kernel)
    return next((one for one in kernels if runs_right(partial(_error, one, device, dtype))), None)


def _gluon_kernel(qkv: Tensor, real: int, counted: int, repeats: int, *, rows: int) -> Tensor:
    from mllama_cli.kernels.cuda.tower_gluon import tower_attention

    return tower_attention(qkv, real, counted, repeats, rows=rows)


def _triton_kernel(qkv: Tensor, real: int, counted: int, repeats: int, *, rows: int) -> Tensor:
    from mllama_cli.kernels.cuda.tower_attention import tower_attention

    return tower_attention(qkv, real, counted, repeats, rows=rows)


def _error(kernel: TowerKernel, device: torch.device, dtype: torch.dtype) -> float:
    """Return the relative error of a kernel on random numbers, with each kind of block that an image has."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 640, 3, 16, 80, generator=generator).to(device, dtype)  # heads as in released models
    exact = two_calls(qkv.float(), 300, 330, 3, rows=640)
    return float((kernel(qkv, 300, 330, 3, rows=640).float() - exact).norm() / exact.norm())


def two_calls(qkv: Tensor, real: int, counted: int, repeats: int, *, rows: int) -> Tensor:
    """Compute ``tower_attention`` by two calls without a mask: real queries over all keys, padding over real keys."""
    scale = qkv.shape[-1] ** -0.5
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    parts = []
    try:
        with on_side_stream(qkv):  # few queries, which alone would leave a GPU idle
            if rows > real:
                parts.append(encoder_attention(q[:, :, real:], k[:, :, :real], v[:, :, :real], scale))
        if repeats > 1:
            q, k, v = repeat_padding_keys(qkv, scale, counted, repeats).permute(2, 0, 3, 1, 4)
        parts.insert(0, encoder_attention(q[:, :, :real], k, v, scale)[..., : qkv.shape[-1]])
    finally:
        join_side_stream(qkv)  # also on errors: a capture cannot end before all streams have joined
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).flatten(2)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def on_side_stream(x: Tensor) -> Iterator[None]:
    """Run the block in parallel with what follows, until ``join_side_stream``; no effect without a GPU."""
    if not x.is_cuda or torch.is_grad_enabled():
        yield
        return
    side = _side_stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):
        yield


def join_side_stream(x: Tensor) -> None:
    """Make the current stream wait for what was started ``on_side_stream``."""
    if x.is_cuda and not torch.is_grad_enabled():
        torch.cuda.current_stream(x.device).wait_stream(_side_stream(x.device))


def repeat_padding_keys(qkv: Tensor, scale: float, first: int, repeats: int) -> Tensor:
    """Pad queries, keys, values [N, tokens, 3, heads, D] so that keys from ``first`` on count ``repeats`` times.

    Two extra dimensions carry the bias log(repeats) / scale, rounded to q's dtype, and the rounding error, so that it
    is exact enough in bfloat16 too. Head dimensions are padded to a multiple of 8 for fast attention kernels.
    """
    dim = qkv.shape[-1]
    bias = torch.tensor(math.log(repeats) / scale)
    rounded = bias.to(qkv.dtype).float()
    return pad_heads(qkv, -(-(dim + 2) // 8) * 8, first, float(rounded), float(bias - rounded))
