"""Numbers out of packed words. Converting integers is slow, so float32 bits are made instead.

A number or-ed into the upper bits of a mantissa is a constant plus the number; the constant is taken off later, where
that costs least.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def bit_of(place, bits, exact):
    """Where in the mantissa the number at a place of a word goes.

    The further up, the smaller the constant and what it costs in precision; the fewer different shifts, the faster. For
    bfloat16 activations (not ``exact``) of four bits places 2, 3, 4 stay at bits 8, 12, 16; 0 and 1 are shifted there
    by 8 to the left, 5 to 7 by 12 to the right; of eight bits 0 and 1 go to bits 7 and 15 by 7 to the left, 2 and 3 by
    9 to the right. A product then loses a quarter of what rounding it to bfloat16 does.
    """
    if bits == 8:
        return 15 if exact or place % 2 else 7
    if exact:
        return 12 if place % 2 else 16
    return 8 + 4 * (place if place < 2 else place - 2 if place < 5 else place - 5)


@triton.jit
def lifted(words, PLACE: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The number at ``PLACE`` of each int32 word, as float32, plus ``excess_of``. ASSEMBLY is for a GPU."""
    BIT: tl.constexpr = bit_of(PLACE, BITS, EXACT)
    SHIFT: tl.constexpr = BIT - BITS * PLACE
    MASK: tl.constexpr = ((1 << BITS) - 1) << BIT
    BASE: tl.constexpr = (127 + 23 - BIT) << 23  # 2^(23 - BIT), whose mantissa counts whole numbers from BIT on
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
def excess_of(PLACE: tl.constexpr, BITS: tl.constexpr, EXACT: tl.constexpr):
    """What ``lifted`` adds at this place, the packed numbers' own offset 2^(bits - 1) included."""
    BIT: tl.constexpr = bit_of(PLACE, BITS, EXACT)
    EXCESS: tl.constexpr = 1.0 * ((1 << (23 - BIT)) + (1 << (BITS - 1)))
    return EXCESS


@triton.jit
def unpacked_place(words, scale, PLACE: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The number at ``PLACE`` of each word times its scale, in float32."""
    return lifted(words, PLACE, BITS, True, ASSEMBLY) * scale - excess_of(PLACE, BITS, True) * scale


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
