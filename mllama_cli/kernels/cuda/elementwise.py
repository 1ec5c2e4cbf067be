"""Fused elementwise kernels for many rows, as in prefill: one pass over memory where torch takes several."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(x, weight, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < SIZE
    values = tl.load(x + row * SIZE + index, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    normed = (values * scale).to(out.dtype.element_ty).to(tl.float32)
    normed *= tl.load(weight + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + index, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_layer_norm_kernel(
    x, branch, gate, weight, bias, total, out, scales, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Compute one row of x + gate * branch and its LayerNorm in each program, SCALED to fit a float8 ``out``."""
    row = tl.program_id(0).to(tl.int64) * SIZE
    index = tl.arange(0, BLOCK)
    inside = index < SIZE
    element = total.dtype.element_ty
    values = tl.load(branch + row + index, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        values = (values * tl.load(gate).to(tl.float32)).to(element).to(tl.float32)
    values += tl.load(x + row + index, mask=inside, other=0.0).to(tl.float32)
    values = values.to(element).to(tl.float32)
    tl.store(total + row + index, values.to(element), mask=inside)
    factor = tl.load(weight + index, mask=inside, other=0.0).to(tl.float32)
    values = tl.where(inside, values - tl.sum(values, axis=0) / SIZE, 0.0)
    values *= tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    values = values * factor + tl.load(bias + index, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        largest = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-12)
        values *= 448.0 / largest
        tl.store(scales + tl.program_id(0), largest / 448.0)
    tl.store(out + row + index, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_and_mul_kernel(gate, up, out, count, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(gate + index, mask=inside, other=0.0).to(tl.float32)
    value = (value * tl.sigmoid(value)).to(out.dtype.element_ty).to(tl.float32)
    value *= tl.load(up + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + index, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gelu_of(x):
    """Return x * Phi(x) by formula 7.1.26 of Abramowitz and Stegun, of error 1.5e-7, in half the time of erf."""
    size = tl.abs(x)
    t = 1.0 / (1.0 + 0.2316419 * size)
    tail = t * (0.12741479 + t * (-0.14224838 + t * (0.71070688 + t * (-0.72657602 + t * 0.53070272))))
    return tl.maximum(x, 0.0) - size * tail * tl.math.exp2(-0.72134752 * x * x)


@triton.jit
def gelu_kernel(x, count, BLOCK: tl.constexpr):
    """Work from the end, which the product before has just written: it is still in the cache."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + index, gelu_of(values).to(x.dtype.element_ty), mask=inside)


@triton.jit
def apply_rope_kernel(
    x, cos, sin, out, length, x_batch, x_row, x_head, rotation_batch,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rotate all heads of one row in each program."""
    row = tl.program_id(0)
    batch = tl.program_id(1)
    head = tl.arange(0, WIDTH)
    pair = tl.arange(0, HALF)
    inside = (head < HEADS)[:, None]
    source = x + batch.to(tl.int64) * x_batch + row * x_row + head[:, None] * x_head + pair[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = batch * rotation_batch + row * 2 * HALF + pair
    c = tl.load(cos + angle)[None, :]
    s = tl.load(sin + angle)[None, :]
    target = out + ((batch.to(tl.int64) * length + row) * HEADS + head[:, None]) * (2 * HALF) + pair[None, :]
    tl.store(target, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def pad_heads_kernel(
    qkv, out, bias, bias_rest, tokens, first,
    HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pad queries, keys and values of all heads of one token in each program."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    source = qkv + token * 3 * HEADS * DIM + row * DIM + column
    values = tl.load(source, mask=(row < 3 * HEADS) & (column < DIM), other=0.0)
    one = (row < HEADS) & (column >= DIM) & (column < DIM + 2)
    values = tl.where(one, 1.0, values.to(tl.float32))
    key = (row >= HEADS) & (row < 2 * HEADS) & (token % tokens >= first)
    values = tl.where(key & (column == DIM), bias, values)
    values = tl.where(key & (column == DIM + 1), bias_rest, values)
    target = out + token * 3 * HEADS * WIDTH + row * WIDTH + column
    tl.store(target, values.to(out.dtype.element_ty), mask=(row < 3 * HEADS) & (column < WIDTH))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Apply RMSNorm over the last dimension of x [..., size]: in float32, cast back, then times the weight."""
    x = x.contiguous()
    out = torch.empty_like(x)
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    rms_norm_kernel[(x.numel() // size,)](x, weight, out, eps, size, block, num_warps=min(max(block // 512, 1), 16))
    return out


def add_layer_norm(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x + gate * branch and its LayerNorm; gate is one number of x's dtype."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _add_layer_norm(x, branch, gate, weight, bias, eps, out, None), out


def add_layer_norm_float8(
    x: Tensor, branch: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + gate * branch and its LayerNorm as float8_e4m3fn, with the float32 scale [...] of each row."""
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    return _add_layer_norm(x, branch, gate, weight, bias, eps, out, scales), out, scales


def _add_layer_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out: Tensor,
    scales: Tensor | None,
) -> Tensor:
    x, branch = x.contiguous(), branch.contiguous()
    total, size = torch.empty_like(x), x.shape[-1]
    block = triton.next_power_of_2(size)
    add_layer_norm_kernel[(x.numel() // size,)](
        x, branch, branch if gate is None else gate, weight, bias, total, out, total if scales is None else scales, eps,
        size, block, gate is not None, scales is not None, num_warps=min(max(block // 512, 1), 16),
    )  # fmt: skip
    return total


def silu_and_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, elementwise."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    silu_and_mul_kernel[(triton.cdiv(gate.numel(), 4096),)](gate, up, out, gate.numel(), 4096, num_warps=8)
    return out


def gelu_(x: Tensor) -> Tensor:
    """Write gelu(x), with erf, over contiguous x."""
    gelu_kernel[(triton.cdiv(x.numel(), 2048),)](x, x.numel(), 2048, num_warps=4)
    return x


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, L, head_dim] by cos and sin float32 [B or 1, 1, L, head_dim], as in kernels/ops.py."""
    batch, heads, length, dim = x.shape
    if x.stride(3) != 1:
        x = x.contiguous()
    out = x.new_empty(batch, length, heads, dim)
    apply_rope_kernel[(length, batch)](
        x, cos, sin, out, length, x.stride(0), x.stride(2), x.stride(1), cos.stride(0) if cos.shape[0] > 1 else 0,
        heads, triton.next_power_of_2(heads), dim // 2, num_warps=4,
    )  # fmt: skip
    return out.transpose(1, 2)


def pad_heads(qkv: Tensor, width: int, first: int, bias: float, bias_rest: float) -> Tensor:
    """Pad heads as kernels/ops.py's ``pad_heads`` does."""
    batch, tokens, _, heads, dim = qkv.shape
    out = qkv.new_empty(batch, tokens, 3, heads, width)
    pad_heads_kernel[(batch * tokens,)](
        qkv.contiguous(), out, bias, bias_rest, tokens, first, heads, dim, width,
        triton.next_power_of_2(3 * heads), triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return out
