"""Multiply packed integers by activations in 16-bit fixed point, four bytes in an instruction.

A thread's activations for a quad of words share a unit, 1/32767 of the largest. An activation is then an integer of two
bytes, a signed and an unsigned one, and sums of products are exact. The unit is finer than bfloat16 for all but those
that are less than 1/128 of the largest.
"""

import triton
import triton.language as tl

LARGEST = tl.constexpr(32767.0)
ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2^23: after adding it, the lower 16 bits of a float are the rounded integer."""

PACK_ASSEMBLY = tl.constexpr("""{
.reg .b32 first, second;
prmt.b32 first, $2, $3, 0x0040;
prmt.b32 second, $4, $5, 0x0040;
prmt.b32 $0, first, second, 0x5410;
prmt.b32 first, $2, $3, 0x0051;
prmt.b32 second, $4, $5, 0x0051;
prmt.b32 $1, first, second, 0x5410;
}""")

DOT4_ASSEMBLY = tl.constexpr("""{
.reg .b32 even, odd, sum;
and.b32 even, $1, 0x0F0F0F0F;
shr.b32 odd, $1, 4;
and.b32 odd, odd, 0x0F0F0F0F;
dp4a.u32.s32 sum, even, $3, 0;
dp4a.u32.s32 sum, odd, $5, sum;
shl.b32 sum, sum, 8;
dp4a.u32.u32 sum, even, $2, sum;
dp4a.u32.u32 $0, odd, $4, sum;
}""")

DOT8_ASSEMBLY = tl.constexpr("""{
.reg .b32 sum;
dp4a.u32.s32 sum, $1, $3, 0;
shl.b32 sum, sum, 8;
dp4a.u32.u32 $0, $1, $2, sum;
}""")


@triton.jit
def larger(first, second):
    """Return the larger of two numbers, NaN if one is."""
    return tl.maximum(first, second, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def as_fixed(values, per_unit):
    """Return values as int32 whose lower 16 bits are integers of ``1 / per_unit``."""
    return (values * per_unit + ROUNDER).to(tl.int32, bitcast=True)


@triton.jit
def low_bytes(a, b, c, d):
    """Return the lowest bytes of four int32 as one, the first lowest."""
    return (a & 0xFF) | ((b & 0xFF) << 8) | ((c & 0xFF) << 16) | ((d & 0xFF) << 24)


@triton.jit
def pack(a, b, c, d, CAPABILITY: tl.constexpr):
    """Return the lowest bytes of four int32, as one, and the next to lowest."""
    if CAPABILITY > 0:
        return tl.inline_asm_elementwise(PACK_ASSEMBLY, "=r,=r,r,r,r,r", [a, b, c, d], (tl.int32, tl.int32), True, 1)
    else:
        return low_bytes(a, b, c, d), low_bytes(a >> 8, b >> 8, c >> 8, d >> 8)


@triton.jit
def lower_half(fixed):
    """Return the signed integers in the lower 16 bits."""
    return (fixed << 16) >> 16


@triton.jit
def fix_activations(x0, x1, x2, x3, x4, x5, x6, x7, BITS: tl.constexpr, CAPABILITY: tl.constexpr):
    """Return activations [Q, 1, 4], one for each number of a word, in fixed point.

    These are the lower and upper bytes of those of even numbers, and of odd ones (with 8 bits, of all numbers, twice),
    the sum of all times the numbers' offset, int32 [Q, 1], and the unit, float32 [Q, 1].
    """
    most = larger(larger(tl.abs(x0), tl.abs(x1)), larger(tl.abs(x2), tl.abs(x3)))
    if BITS == 4:
        most = larger(most, larger(larger(tl.abs(x4), tl.abs(x5)), larger(tl.abs(x6), tl.abs(x7))))
    most = tl.reduce(most, 2, larger, keep_dims=True)
    per_unit = tl.where(most == 0.0, 0.0, LARGEST / most)
    f0 = as_fixed(x0, per_unit)
    f1 = as_fixed(x1, per_unit)
    f2 = as_fixed(x2, per_unit)
    f3 = as_fixed(x3, per_unit)
    total = lower_half(f0) + lower_half(f1) + lower_half(f2) + lower_half(f3)
    if BITS == 4:
        f4 = as_fixed(x4, per_unit)
        f5 = as_fixed(x5, per_unit)
        f6 = as_fixed(x6, per_unit)
        f7 = as_fixed(x7, per_unit)
        total += lower_half(f4) + lower_half(f5) + lower_half(f6) + lower_half(f7)
        low_even, high_even = pack(f0, f2, f4, f6, CAPABILITY)
        low_odd, high_odd = pack(f1, f3, f5, f7, CAPABILITY)
    else:
        low_even, high_even = pack(f0, f1, f2, f3, CAPABILITY)
        low_odd, high_odd = low_even, high_even
    OFFSET: tl.constexpr = 1 << (BITS - 1)
    unit = tl.sum(most, axis=2) * (1.0 / LARGEST)
    return low_even, high_even, low_odd, high_odd, tl.sum(total, axis=2) * OFFSET, unit


@triton.jit
def dot_bytes(first, second, SIGNED: tl.constexpr):
    """Return the dot product of four unsigned bytes and four others."""
    total = tl.zeros_like(first)
    for shift in tl.static_range(0, 32, 8):
        byte = (second >> shift) & 0xFF
        if SIGNED:
            byte = (byte ^ 0x80) - 0x80
        total += ((first >> shift) & 0xFF) * byte
    return total


@triton.jit
def fixed_product(
    words, low_even, high_even, low_odd, high_odd, offset, unit, BITS: tl.constexpr, CAPABILITY: tl.constexpr
):
    """Multiply the integers of words [Q, N, 4] by what ``fix_activations`` returned -> float32 [Q, N]."""
    if CAPABILITY > 0:
        if BITS == 4:
            dots = tl.inline_asm_elementwise(
                DOT4_ASSEMBLY, "=r,r,r,r,r,r", [words, low_even, high_even, low_odd, high_odd], tl.int32, True, 1
            )
        else:
            dots = tl.inline_asm_elementwise(DOT8_ASSEMBLY, "=r,r,r,r", [words, low_even, high_even], tl.int32, True, 1)
    else:
        low_even, words = tl.broadcast(low_even, words)
        if BITS == 4:
            even, odd = words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F
            dots = (dot_bytes(even, high_even, True) + dot_bytes(odd, high_odd, True)) * 256
            dots += dot_bytes(even, low_even, False) + dot_bytes(odd, low_odd, False)
        else:
            dots = dot_bytes(words, high_even, True) * 256 + dot_bytes(words, low_even, False)
    return (tl.sum(dots, axis=2) - offset).to(tl.float32) * unit
