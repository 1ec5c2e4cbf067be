"""Numbers out of packed words. Converting integers is slow, so float32 bits are made instead.

A number or-ed into the upper bits of a mantissa is a constant plus the number; the constant is taken off later, where
that costs least.
"""

import triton
import triton.language as tl


@triton.jit
def lifted(words, PLACE: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The number at ``PLACE`` of each int32 word, as float32, plus ``excess_of``. ASSEMBLY is for a GPU."""
    # Of four bits, even places go to bits 16-19 (128 + q), odd ones to bits 12-15 (2048 + q): half as many shifts.
    EVEN: tl.constexpr = PLACE % 2 == 0
    SHIFT: tl.constexpr = ((16 if EVEN else 12) - 4 * PLACE) if BITS == 4 else 8 - 8 * PLACE
    MASK: tl.constexpr = (0x000F0000 if EVEN else 0x0000F000) if BITS == 4 else 0x0000FF00
    BASE: tl.constexpr = (0x43000000 if EVEN else 0x45000000) if BITS == 4 else 0x47000000
    if SHIFT > 0:
        words = words << SHIFT
    elif SHIFT < 0:
        words = words >> (0 - SHIFT)
    if ASSEMBLY:  # one instruction for and-or with two constants, which the compiler makes two of
        mask = tl.full(words.shape, MASK, tl.int32)
        base = tl.full(words.shape, BASE, tl.int32)
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [words, mask, base], tl.int32, True, 1
        )
    else:
        bits = (words & MASK) | BASE
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def excess_of(PLACE: tl.constexpr, BITS: tl.constexpr):
    """What ``lifted`` adds at this place, the packed numbers' own offset 2^(bits - 1) included."""
    if BITS == 4:
        return 136.0 if PLACE % 2 == 0 else 2056.0
    else:
        return 32896.0


@triton.jit
def unpacked_place(words, scale, PLACE: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The number at ``PLACE`` of each word times its scale, in float32."""
    return lifted(words, PLACE, BITS, ASSEMBLY) * scale - excess_of(PLACE, BITS) * scale


@triton.jit
def unpacked(words, scale, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Words [N, W] and their scales, float32 [N, W] or [N, 1] -> the matrix [N, W * 32 / BITS], float32."""
    p0 = unpacked_place(words, scale, 0, BITS, ASSEMBLY)
    p1 = unpacked_place(words, scale, 1, BITS, ASSEMBLY)
    p2 = unpacked_place(words, scale, 2, BITS, ASSEMBLY)
    p3 = unpacked_place(words, scale, 3, BITS, ASSEMBLY)
    if BITS == 8:
        return tl.interleave(tl.interleave(p0, p2), tl.interleave(p1, p3))
    else:
        p4 = unpacked_place(words, scale, 4, BITS, ASSEMBLY)
        p5 = unpacked_place(words, scale, 5, BITS, ASSEMBLY)
        p6 = unpacked_place(words, scale, 6, BITS, ASSEMBLY)
        p7 = unpacked_place(words, scale, 7, BITS, ASSEMBLY)
        even = tl.interleave(tl.interleave(p0, p4), tl.interleave(p2, p6))
        odd = tl.interleave(tl.interleave(p1, p5), tl.interleave(p3, p7))
        return tl.interleave(even, odd)
