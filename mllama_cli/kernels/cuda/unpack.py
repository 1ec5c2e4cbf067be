"""Unpack numbers from words. Converting integers is slow, so bits of floats are assembled instead.

For integers this is the "magic number" trick of FasterTransformer and Marlin: OR-ing a number into the upper bits of a
mantissa (one lop3 instruction) yields a constant plus the number. The constant, the bias, is subtracted where that
costs least. kernels/cuda/lookup.py has the other codes.
"""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.lookup import (
    NATIVE_FP8,
    fp8_value,
    look_up,
    pick,
    table_value,
    word_of_fp8,
)


@triton.constexpr_function
def bit_of(index, bits):
    """Return the bit of the mantissa to which the number at an index of a word is moved.

    Higher bits mean a smaller constant and less loss of precision; fewer different shifts are faster.
    """
    return 15 if bits == 8 else 12 if index % 2 else 16


@triton.jit
def as_biased_float(words, INDEX: tl.constexpr, BITS: tl.constexpr, CODE: tl.constexpr, CAPABILITY: tl.constexpr):
    """Return the number at INDEX of each int32 word, as float32, with integers plus ``integer_bias``.

    CAPABILITY is the GPU's or 0. The unit is ``unit_of`` the code. Calls for the indices of one word share what they
    compute.
    """
    if CODE == "int":
        return _biased_integer(words, INDEX, BITS, CAPABILITY)
    elif CODE == "fp8":
        if CAPABILITY > 0:
            return pick(word_of_fp8(words, CAPABILITY), INDEX)
        else:
            return fp8_value((words >> (8 * INDEX)) & 0xFF)
    else:
        if CAPABILITY > 0:
            return look_up(words, INDEX, CODE)
        else:
            return table_value((words >> (4 * INDEX)) & 0xF, CODE)


@triton.constexpr_function
def unit_of(code, capability):
    """Return the unit of ``as_biased_float``, by which scales are multiplied."""
    return 256.0 if code == "fp8" and capability < NATIVE_FP8.value else 1.0


@triton.jit
def _biased_integer(words, INDEX: tl.constexpr, BITS: tl.constexpr, CAPABILITY: tl.constexpr):
    BIT: tl.constexpr = bit_of(INDEX, BITS)
    SHIFT: tl.constexpr = BIT - BITS * INDEX
    MASK: tl.constexpr = ((1 << BITS) - 1) << BIT
    BASE: tl.constexpr = (127 + 23 - BIT) << 23  # 2^(23 - BIT), whose mantissa counts integers from BIT on
    if SHIFT > 0:
        words = words << SHIFT
    elif SHIFT < 0:
        words = words >> (0 - SHIFT)
    if CAPABILITY > 0:  # and-or with two constants in one instruction, where the compiler uses two
        mask = tl.full(words.shape, MASK, tl.int32)
        base = tl.full(words.shape, BASE, tl.int32)
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [words, mask, base], tl.int32, True, 1
        )
    else:
        bits = (words & MASK) | BASE
    return bits.to(tl.float32, bitcast=True)


@triton.constexpr_function
def integer_bias(index, bits):
    """Return what ``as_biased_float`` adds to an integer at this index, its own offset 2^(bits - 1) included."""
    return float((1 << (23 - bit_of(index, bits))) + (1 << (bits - 1)))


@triton.jit
def dequantize_number(
    words, scale, INDEX: tl.constexpr, BITS: tl.constexpr, CODE: tl.constexpr, CAPABILITY: tl.constexpr
):
    """Return the number at INDEX of each word times its scale, in float32."""
    value = as_biased_float(words, INDEX, BITS, CODE, CAPABILITY) * scale
    if CODE == "int":
        value -= integer_bias(INDEX, BITS) * scale
    return value


@triton.jit
def dequantize_tile(words, scale, BITS: tl.constexpr, CODE: tl.constexpr, CAPABILITY: tl.constexpr):
    """Dequantize words [N, W] with scales float32 [N, W] or [N, 1] -> float32 [N, W * 32 / BITS]."""
    scale *= unit_of(CODE, CAPABILITY)
    p0 = dequantize_number(words, scale, 0, BITS, CODE, CAPABILITY)
    p1 = dequantize_number(words, scale, 1, BITS, CODE, CAPABILITY)
    p2 = dequantize_number(words, scale, 2, BITS, CODE, CAPABILITY)
    p3 = dequantize_number(words, scale, 3, BITS, CODE, CAPABILITY)
    if BITS == 8:
        return tl.interleave(tl.interleave(p0, p2), tl.interleave(p1, p3))
    else:
        p4 = dequantize_number(words, scale, 4, BITS, CODE, CAPABILITY)
        p5 = dequantize_number(words, scale, 5, BITS, CODE, CAPABILITY)
        p6 = dequantize_number(words, scale, 6, BITS, CODE, CAPABILITY)
        p7 = dequantize_number(words, scale, 7, BITS, CODE, CAPABILITY)
        even = tl.interleave(tl.interleave(p0, p4), tl.interleave(p2, p6))
        odd = tl.interleave(tl.interleave(p1, p5), tl.interleave(p3, p7))
        return tl.interleave(even, odd)
