"""The network's operations: for each, the torch reference and the one place that chooses a kernel instead.

Attention is in sdpa.py. Kernels have no gradients, so training always uses torch's operations.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.core.errors import CheckpointError
from mllama_cli.kernels import packed as reference
from mllama_cli.kernels.available import (
    image_kernels_available,
    native_for_small_batch,
    needs_grad,
    runs_right,
    triton_available,
    use_triton,
)
from mllama_cli.kernels.codes import Code
from mllama_cli.kernels.packed import PackedWeight

BUFFER_BYTES = 24 * 2**20
"""Bytes of intermediate values that ``by_rows`` allows: glibc keeps freed buffers of up to 32 MiB."""

MIN_FUSED_GELU_ROWS = 1024
"""Rows from which our product with GELU was measured to be faster than cuBLAS and a pass over its result."""


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return ``tensor`` on the device without waiting for a GPU's work, which takes pinned memory."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, exact: bool = False) -> Tensor:
    """Multiply x [..., in] by the transposed matrix [out, in] and add bias [out] -> [..., out], in x's dtype.

    This is ``F.linear``, except for bfloat16 and float16 on a CPU, which computes in float32 without ever holding the
    whole matrix in float32. ``exact`` as in ``quantized_linear``.
    """
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float16) or needs_grad(x, weight):
        return F.linear(x, weight, bias)
    _check_columns(x, weight.shape[1])
    from mllama_cli.kernels.cpu.linear import dense

    return dense(x, weight, bias, exact=exact)


def rounded_for(x: Tensor, weight: Tensor, *, exact: bool = False) -> Tensor:
    """Return x in the dtype to which ``linear`` rounds many rows before it multiplies them by this matrix.

    For rows that go through several products, so that everything between them is done in that dtype too: on a CPU
    with bfloat16 instructions, attention too is several times as fast.
    """
    if exact or x.device.type != "cpu" or needs_grad(x, weight):
        return x
    from mllama_cli.kernels.cpu.linear import rounds_to_bfloat16

    return x.to(weight.dtype) if rounds_to_bfloat16(weight) else x


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Apply a function of single rows to x [..., rows, size], on a CPU to some rows at a time.

    ``width`` is the largest number of values that a row has within the function. A large buffer is slow on a CPU: it
    leaves the cache, and the system has to hand out its pages again each time.
    """
    step = max(1, BUFFER_BYTES // (width * x.element_size()))
    if x.device.type != "cpu" or torch.is_grad_enabled() or x.shape[-2] <= step:
        return function(x)
    return torch.cat([function(part) for part in x.split(step, dim=-2)], dim=-2)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, *, exact: bool = False) -> Tensor:
    """Return residual + linear(x), possibly written over ``residual``: a GPU adds it inside the product."""
    if use_triton(residual) and bias is None and weight.dtype == x.dtype == residual.dtype:
        residual.view(-1, residual.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())
        return residual
    return residual + linear(x, weight, bias, exact=exact)


def gelu_(x: Tensor) -> Tensor:
    """Return gelu(x) in its exact form, with erf; possibly written over x."""
    if use_triton(x) and x.is_contiguous():
        from mllama_cli.kernels.cuda import elementwise

        return elementwise.gelu_(x)
    return F.gelu(x)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, *, exact: bool = False) -> Tensor:
    """Return gelu(linear(x)), with erf: a GPU of compute capability 9.0 computes both in one kernel."""
    if bias is not None and x.numel() >= MIN_FUSED_GELU_ROWS * x.shape[-1] and has_product_gelu(x.device, x.dtype):
        from mllama_cli.kernels.cuda import product_gelu as kernel

        if not torch.is_grad_enabled() and kernel.supports(x, weight, bias):
            return kernel.product_gelu(x, weight, bias)
    return gelu_(linear(x, weight, bias, exact=exact))


@cache
def has_product_gelu(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernel of product and GELU runs here and computes what torch does, by trying it."""
    if not image_kernels_available(device, dtype):
        return False

    def error() -> float:
        from mllama_cli.kernels.cuda.product_gelu import product_gelu

        generator = torch.Generator().manual_seed(0)
        x, weight, bias = (  # tiles for all multiprocessors, so that what is compiled here is what images use
            torch.randn(shape, generator=generator).to(device, dtype) for shape in ((8500, 208), (512, 208), (512,))
        )
        exact = F.gelu(F.linear(x.float(), weight.float(), bias.float()))
        return float((product_gelu(x, weight, bias).float() - exact).norm() / exact.norm())

    return runs_right(error)


def quantized_linear(x: Tensor, weight: PackedWeight, *, exact: bool = False) -> Tensor:
    """Multiply x [..., in] by the transposed packed matrix -> [..., out], in x's dtype.

    Unless ``exact``, a CPU may round activations to 8 bits, an error of about 0.5% of the result's norm. Raises
    CheckpointError where the matrix's tensors do not fit its shape.
    """
    check(weight)
    _check_columns(x, weight.shape[1])
    if x.device.type == "cpu" and not needs_grad(x):
        from mllama_cli.kernels.cpu.linear import quantized

        return quantized(x, weight, exact=exact)
    if use_triton(x):
        from mllama_cli.kernels.cuda import dequantize

        return dequantize.quantized_linear(x, weight)
    return reference.quantized_linear(x, weight)


def multiplies_packed(code: Code, device: torch.device) -> bool:
    """Return whether matrices of this code should stay packed on a device: on a CPU, torch alone has only integers."""
    if code == "int" or device.type != "cpu":
        return True
    from mllama_cli.kernels.cpu.native import native

    return native() is not None


def check(weight: PackedWeight) -> None:
    """Raise CheckpointError unless a packed matrix's tensors fit its shape: kernels trust these sizes."""
    if weight.problem:
        raise CheckpointError(
            f"A quantized matrix is damaged: {weight.problem}", "Download or quantize the model again."
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Apply RMSNorm over the last dimension: in float32, cast back, then times the weight."""
    if use_triton(x) and x.dtype == weight.dtype:
        from mllama_cli.kernels.cuda import elementwise

        return elementwise.rms_norm(x, weight, eps)
    if (kernels := native_for_small_batch(x, weight, rows=x.numel() // x.shape[-1])) and x.is_contiguous():
        return kernels.rms_norm(x, weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def add_layer_norm(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x + gate * branch, and its LayerNorm."""
    if use_triton(x) and x.dtype == weight.dtype:
        from mllama_cli.kernels.cuda import elementwise

        return elementwise.add_layer_norm(x, branch, gate, weight, bias, eps)
    total = x + (branch if gate is None else gate * branch)
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


def silu_and_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, elementwise."""
    if use_triton(gate):
        from mllama_cli.kernels.cuda import elementwise

        return elementwise.silu_and_mul(gate, up)
    kernels = native_for_small_batch(gate, up, rows=gate.numel() // gate.shape[-1])
    if kernels and gate.is_contiguous() and up.is_contiguous():
        return kernels.silu_and_mul(gate, up)
    return F.silu(gate) * up


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, L, head_dim] by angles [B or 1, 1, L, head_dim], in float32 as Meta's reference does."""
    if use_triton(x) and x.shape[-1] & (x.shape[-1] - 1) == 0:
        from mllama_cli.kernels.cuda import elementwise

        return elementwise.apply_rope(x, cos, sin)
    kernels = native_for_small_batch(x, cos, sin, rows=x.shape[0] * x.shape[2])
    if kernels and x.stride(3) == 1 and cos.is_contiguous():
        return kernels.apply_rope(x, cos, sin)
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def pad_heads(qkv: Tensor, width: int, first: int, bias: float, bias_rest: float) -> Tensor:
    """Pad queries, keys and values [N, tokens, 3, heads, D] with zeros to ``width`` dimensions a head.

    The first two added dimensions are 1 in queries, and ``bias`` and ``bias_rest`` in the keys from token ``first`` on.
    """
    if use_triton(qkv):
        from mllama_cli.kernels.cuda import elementwise

        return elementwise.pad_heads(qkv, width, first, bias, bias_rest)
    dim = qkv.shape[-1]
    wide = F.pad(qkv, (0, width - dim))
    wide[:, :, 0, :, dim : dim + 2] = 1.0
    wide[:, first:, 1, :, dim] = bias
    wide[:, first:, 1, :, dim + 1] = bias_rest
    return wide


def best_ids(scores: Tensor) -> Tensor:
    """Return the first id [n] of the highest score, -1 where a score is NaN or the highest is infinite."""
    best, ids = scores.max(dim=-1)
    return torch.where(best.isfinite(), ids, -1)


def masked(scores: Tensor, words: Tensor) -> Tensor:
    """Return scores [n, size] with those whose bit in ``words`` int32 [n, ceil(size / 32)] is 0 at -inf.

    A word has the bits of 32 successive ids, lowest first.
    """
    bits = (words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=words.device)) & 1
    return scores.masked_fill(bits.flatten(1)[:, : scores.shape[1]] == 0, -math.inf)


def best_allowed(logits: Tensor, words: Tensor, rows: Tensor) -> Tensor:
    """Return the ``best_ids`` of logits [n, size] that are ``masked`` by rows int64 [n] of ``words``, -1 by none."""
    if use_triton(logits):
        from mllama_cli.kernels.cuda import embed_argmax

        return embed_argmax.best_allowed(logits, words, rows)
    return best_ids(masked(logits.float(), torch.where(rows[:, None] < 0, -1, words[rows.clamp(min=0)])))


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Look up ids [...] in a table [rows, size] -> [..., size] on the ids' device.

    A GPU reads a table in pinned host memory itself, also in a captured graph. Without our kernels, ids and rows are
    copied over the bus, which cannot be captured.
    """
    if ids.device == table.device or table.is_cuda:
        return F.embedding(ids, table)
    if use_triton(ids):
        from mllama_cli.kernels.cuda import host_embedding

        return host_embedding.gather(ids, table)
    return F.embedding(ids.to(table.device), table).to(ids.device)


def reads_host_memory(device: torch.device) -> bool:
    """Return whether ``embedding`` works in captured graphs of this GPU with a table in host memory."""
    return triton_available(device)


def _check_columns(x: Tensor, columns: int) -> None:
    if x.shape[-1] != columns:
        raise ValueError(f"x has {x.shape[-1]} columns, the matrix {columns}")
