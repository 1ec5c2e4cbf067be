"""Norm, gate and rotation: one fused kernel each where there is one, else plain torch.

On a GPU that is for any number of rows, on a CPU for a few: what lies between a decoded token's products are dozens of
operations a layer, which take longer to call than to compute.
"""

from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from mllama_cli.kernels.cpu.native import Native

FEW = 8
"""Rows up to which our CPU kernels take them; torch's operations use all threads for more."""


def few(*tensors: Tensor, rows: int) -> "Native | None":
    """Our CPU kernels, if they are loaded and take these: few rows in float32, and no gradients."""
    if (
        rows > FEW
        or torch.is_grad_enabled()
        or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors)
    ):
        return None
    from mllama_cli.kernels.cpu.native import native_if_loaded

    return native_if_loaded()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension: float32 inside, cast back, then times the weight."""
    if fused(x) and x.dtype == weight.dtype:
        from mllama_cli.kernels.cuda import elementwise as rows

        return rows.rms_norm(x, weight, eps)
    if (kernels := few(x, weight, rows=x.numel() // x.shape[-1])) and x.is_contiguous():
        return kernels.rms_norm(x, weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def add_layer_norm(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + gate * branch, and its LayerNorm."""
    if fused(x) and x.dtype == weight.dtype:
        from mllama_cli.kernels.cuda import elementwise as rows

        return rows.add_norm(x, branch, gate, weight, bias, eps)
    total = x + (branch if gate is None else gate * branch)
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise."""
    if fused(gate):
        from mllama_cli.kernels.cuda import elementwise as rows

        return rows.gated_silu(gate, up)
    if (kernels := few(gate, up, rows=gate.numel() // gate.shape[-1])) and gate.is_contiguous() and up.is_contiguous():
        return kernels.gated_silu(gate, up)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [B, heads, L, head_dim] by angles [B or 1, 1, L, head_dim], in float32 as Meta's reference does."""
    if fused(x) and x.shape[-1] & (x.shape[-1] - 1) == 0:
        from mllama_cli.kernels.cuda import elementwise as rows

        return rows.rotate(x, cos, sin)
    if (kernels := few(x, cos, sin, rows=x.shape[0] * x.shape[2])) and x.stride(3) == 1 and cos.is_contiguous():
        return kernels.rotate(x, cos, sin)
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def widen(qkv: Tensor, width: int, counted: int, near: float, rest: float) -> Tensor:
    """Queries, keys and values [N, tokens, 3, heads, D] with ``width`` dimensions a head, the further ones 0.

    But the first two of them are 1 in queries, and ``near`` and ``rest`` in the keys of tokens from ``counted`` on.
    """
    if fused(qkv):
        from mllama_cli.kernels.cuda import elementwise as rows

        return rows.widen(qkv, width, counted, near, rest)
    dim = qkv.shape[-1]
    wide = F.pad(qkv, (0, width - dim))
    wide[:, :, 0, :, dim : dim + 2] = 1.0
    wide[:, counted:, 1, :, dim] = near
    wide[:, counted:, 1, :, dim + 1] = rest
    return wide


def fused(x: Tensor) -> bool:
    """Whether our kernels take this: they know no gradients, so training takes torch's operations."""
    return x.is_cuda and not torch.is_grad_enabled() and _works(x.device)


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton builds a kernel here: it needs a C compiler besides itself."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from mllama_cli.kernels.cuda import elementwise as rows

        rows.gated_silu(torch.ones(1, device=device), torch.ones(1, device=device))
    except Exception:  # whatever is missing, torch's own operations do the same
        return False
    return True
