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


@triton.constexpr_function
def offset_assembly(bits):
    """Return PTX for the sum of activations, of which $1 to $4 have the bytes, times what is added to integers.

    That is 8 in units of 1/16, or 128, which makes no difference here.
    """
    lines = "{\n.reg .b32 low, high;\n"
    lines += "dp4a.u32.u32 low, 0x80808080, $1, 0;\ndp4a.u32.s32 high, 0x80808080, $2, 0;\n"
    if bits == 4:
        lines += "dp4a.u32.u32 low, 0x80808080, $3, low;\ndp4a.u32.s32 high, 0x80808080, $4, high;\n"
    return lines + "mad.lo.s32 $0, high, 256, low;\n}"


@triton.constexpr_function
def dot_assembly(bits):
    """Return PTX for the dot product of four words, $1 to $4, with activations from $6 on, plus $5.

    With 4 bits, the words' odd integers times 16, their even ones, and $5 are in units of 1/16.
    """
    lines = "{\n.reg .b32 part, even_low, even_high, low, high;\n"
    for word in range(4):
        first = word == 0
        if bits == 4:
            x = 6 + 4 * word
            even_high, even_low, high, low = (
                ("0", "0", "0", "$5") if first else ("even_high", "even_low", "high", "low")
            )
            lines += f"and.b32 part, ${1 + word}, 0x0F0F0F0F;\n"
            lines += f"dp4a.u32.s32 even_high, part, ${x + 1}, {even_high};\n"
            lines += f"dp4a.u32.u32 even_low, part, ${x}, {even_low};\n"
            lines += f"and.b32 part, ${1 + word}, 0xF0F0F0F0;\n"
            lines += f"dp4a.u32.s32 high, part, ${x + 3}, {high};\n"
            lines += f"dp4a.u32.u32 low, part, ${x + 2}, {low};\n"
        else:
            x = 6 + 2 * word
            lines += f"dp4a.u32.s32 high, ${1 + word}, ${x + 1}, {'0' if first else 'high'};\n"
            lines += f"dp4a.u32.u32 low, ${1 + word}, ${x}, {'$5' if first else 'low'};\n"
    if bits == 4:
        lines += "mad.lo.s32 high, even_high, 16, high;\nmad.lo.s32 low, even_low, 16, low;\n"
    return lines + "mad.lo.s32 $0, high, 256, low;\n}"


@triton.constexpr_function
def parts_of(bits):
    """Return into how many parts the unit of a product is divided."""
    return 16 if bits == 4 else 1


@triton.constexpr_function
def quarters(shape):
    """Return a shape whose last dimension, 4, is two."""
    return [*shape[:-1], 2, 2]


@triton.jit
def four(numbers):
    """Return [..., 4] as four tensors [...]."""
    even, odd = tl.split(tl.reshape(numbers, quarters(numbers.shape)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


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
    minus the sum of all times the numbers' offset, int32 [Q, 1], and the unit, float32 [Q, 1].
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
    if BITS == 4:
        f4 = as_fixed(x4, per_unit)
        f5 = as_fixed(x5, per_unit)
        f6 = as_fixed(x6, per_unit)
        f7 = as_fixed(x7, per_unit)
        low_even, high_even = pack(f0, f2, f4, f6, CAPABILITY)
        low_odd, high_odd = pack(f1, f3, f5, f7, CAPABILITY)
    else:
        low_even, high_even = pack(f0, f1, f2, f3, CAPABILITY)
        low_odd, high_odd = low_even, high_even
    PARTS: tl.constexpr = parts_of(BITS)
    if CAPABILITY > 0:
        offset = tl.inline_asm_elementwise(
            offset_assembly(BITS), "=&r,r,r,r,r", [low_even, high_even, low_odd, high_odd], tl.int32, True, 1
        )
    else:
        offset = lower_half(f0) + lower_half(f1) + lower_half(f2) + lower_half(f3)
        if BITS == 4:
            offset += lower_half(f4) + lower_half(f5) + lower_half(f6) + lower_half(f7)
        offset *= (1 << (BITS - 1)) * PARTS
    unit = tl.sum(most, axis=2) * (1.0 / (LARGEST * PARTS))
    return low_even, high_even, low_odd, high_odd, 0 - tl.sum(offset, axis=2), unit


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
    """Multiply the integers of words [Q, N, C, 4] by what ``fix_activations`` returned -> float32 [Q, N, C]."""
    if CAPABILITY > 0:
        w0, w1, w2, w3 = four(words)
        a0, a1, a2, a3 = four(low_even)
        b0, b1, b2, b3 = four(high_even)
        if BITS == 4:
            c0, c1, c2, c3 = four(low_odd)
            d0, d1, d2, d3 = four(high_odd)
            dots = tl.inline_asm_elementwise(
                dot_assembly(BITS), "=&r" + ",r" * 21,
                [w0, w1, w2, w3, offset, a0, b0, c0, d0, a1, b1, c1, d1, a2, b2, c2, d2, a3, b3, c3, d3],
                tl.int32, True, 1,
            )  # fmt: skip
        else:
            dots = tl.inline_asm_elementwise(
                dot_assembly(BITS), "=&r" + ",r" * 13,
                [w0, w1, w2, w3, offset, a0, b0, a1, b1, a2, b2, a3, b3], tl.int32, True, 1,
            )  # fmt: skip
        return dots.to(tl.float32) * unit
    else:
        low_even, words = tl.broadcast(low_even, words)
        if BITS == 4:
            even, odd = words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F
            dots = (dot_bytes(even, high_even, True) + dot_bytes(odd, high_odd, True)) * 256
            dots += dot_bytes(even, low_even, False) + dot_bytes(odd, low_odd, False)
        else:
            dots = dot_bytes(words, high_even, True) * 256 + dot_bytes(words, low_even, False)
        return (tl.sum(dots, axis=len(dots.shape) - 1) * parts_of(BITS) + offset).to(tl.float32) * unit
