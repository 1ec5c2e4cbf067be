"""Multiply numbers that are no integers by activations of 16 bits in float16, two in an instruction.

A thread's activations for a quad of words share a unit, a power of two that brings the largest to between 1 and 2, so
that bfloat16 keeps its digits. Four products, of a table's values eight, are added up in float16 one after the other,
then two such sums, and the rest in float32. E4M3 is exact in float16. Values of a table are rounded to it: shared
memory holds those of all pairs of codes.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.codes import TABLES, Code
from mllama_cli.kernels.cuda.fixed_point import four, larger
from mllama_cli.kernels.cuda.lookup import NATIVE_FP8, fp8_value, is_table

NF4_FACTOR = tl.constexpr(1.67769)
"""By what values are multiplied so that rounding to float16 costs least: 0.003% of the largest."""

FP4_FACTOR = tl.constexpr(3.0)
"""By what values are multiplied so that rounding to float16 costs nothing."""

TABLE_BYTES = tl.constexpr(32 * 1024)
"""What the pairs of codes take of shared memory, with a copy for each lane of a warp."""

TABLE_ASSEMBLY = tl.constexpr(f"""{{
.shared .align 128 .b8 pairs_of_codes[{TABLE_BYTES.value}];
mov.u32 $0, pairs_of_codes;
}}""")
STORE_ASSEMBLY = tl.constexpr("""{
st.shared.v4.b32 [$1], {$2, $2, $2, $2};
mov.b32 $0, 0;
}""")
LANE_ASSEMBLY = tl.constexpr("""{
.reg .b32 lane;
mov.u32 lane, %laneid;
shl.b32 lane, lane, 2;
add.u32 $0, $1, lane;
}""")

NATIVE_PAIRS = tl.constexpr("""mov.b32 {{low, high}}, {word};
cvt.rn.f16x2.e4m3x2 pair0, low;
cvt.rn.f16x2.e4m3x2 pair1, high;
""")
SHIFTED_PAIRS = tl.constexpr("""prmt.b32 pair0, {word}, 0, 0x1404;
prmt.b32 pair1, {word}, 0, 0x3424;
shr.b32 shifted, pair0, 1;
and.b32 shifted, shifted, 0x3F803F80;
lop3.b32 pair0, pair0, 0x80008000, shifted, 0xEA;
shr.b32 shifted, pair1, 1;
and.b32 shifted, shifted, 0x3F803F80;
lop3.b32 pair1, pair1, 0x80008000, shifted, 0xEA;
""")
LOOKED_UP_PAIRS = tl.constexpr("""dp4a.u32.u32 address0, {word}, 0x00000080, $5;
dp4a.u32.u32 address1, {word}, 0x00008000, $5;
dp4a.u32.u32 address2, {word}, 0x00800000, $5;
dp4a.u32.u32 address3, {word}, 0x80000000, $5;
ld.shared.b32 pair0, [address0];
ld.shared.b32 pair1, [address1];
ld.shared.b32 pair2, [address2];
ld.shared.b32 pair3, [address3];
""")
"""The dot product of four bytes with 128 in one place is that byte times 128, the stride of the table: an address."""


@triton.constexpr_function
def product_assembly(code, capability):
    """Return PTX for the product of four words, $1 to $4, with activations from $6 on; $5 is the table."""
    found = LOOKED_UP_PAIRS if is_table(code) else NATIVE_PAIRS if capability >= NATIVE_FP8.value else SHIFTED_PAIRS
    pairs = 4 if is_table(code) else 2
    lines = "{\n.reg .b32 address<4>, pair<4>, sum<2>, shifted;\n.reg .b16 low, high;\n.reg .f32 other;\n"
    for word in range(4):
        lines += found.value.format(word=f"${1 + word}")
        for index in range(pairs):
            x, total = f"${6 + pairs * word + index}", f"sum{word // 2}"
            if index or word % 2:
                lines += f"fma.rn.f16x2 {total}, pair{index}, {x}, {total};\n"
            else:
                lines += f"mul.rn.f16x2 {total}, pair{index}, {x};\n"
    lines += "add.rn.f16x2 sum0, sum0, sum1;\nmov.b32 {low, high}, sum0;\n"
    return lines + "cvt.f32.f16 $0, low;\ncvt.f32.f16 other, high;\nadd.f32 $0, $0, other;\n}"


@triton.constexpr_function
def half_unit(code, capability):
    """Return the unit of numbers in float16: floats of 8 bits are only shifted before NATIVE_FP8."""
    if code == "fp8":
        return 256.0 if capability < NATIVE_FP8.value else 1.0
    return 1 / (NF4_FACTOR.value if code == "nf4" else FP4_FACTOR.value)


@cache
def pair_table(code: Code, device: torch.device) -> Tensor:
    """Return the values of all pairs of codes, in units of ``half_unit``, as words [256]: the first is lower."""
    values = (torch.tensor(TABLES[code]) / half_unit(code, 0)).half().view(torch.int16).int() & 0xFFFF
    codes = torch.arange(256)
    pairs: Tensor = values[codes & 15] | values[codes >> 4] << 16
    return pairs.to(device)


@triton.jit
def share_table(pairs, CODE: tl.constexpr, HALVES: tl.constexpr, CAPABILITY: tl.constexpr):
    """Copy what ``pair_table`` returned to 32 KiB of shared memory; return each lane's address [1, 1] of it.

    Each lane of a warp reads a copy in a bank of its own, so that lanes never wait for each other. All threads wait
    here; nothing is done, and zeros returned, without HALVES, a table or a GPU.
    """
    nothing = tl.full([1, 1], 0, tl.int32)
    if HALVES and is_table(CODE) and CAPABILITY > 0:
        base = tl.inline_asm_elementwise(TABLE_ASSEMBLY, "=r", [], tl.int32, False, 1)
        quads = tl.arange(0, 2048)
        words = tl.load(pairs + quads // 8)
        tl.inline_asm_elementwise(STORE_ASSEMBLY, "=r,r,r", [base + quads * 16, words], tl.int32, False, 1)
        tl.debug_barrier()
        return tl.inline_asm_elementwise(LANE_ASSEMBLY, "=r,r", [nothing + base], tl.int32, False, 1)
    else:
        return nothing


@triton.jit
def pair(first, second, CAPABILITY: tl.constexpr):
    """Return two numbers, rounded to float16, as int32, the first in the lower half."""
    if CAPABILITY > 0:
        return tl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [first, second], tl.int32, True, 1)
    else:
        lower = first.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return lower | (second.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def halve_activations(x0, x1, x2, x3, x4, x5, x6, x7, BITS: tl.constexpr, CODE: tl.constexpr, CAPABILITY: tl.constexpr):
    """Return activations [Q, 1, 4], one for each number of a word, in pairs (with 8 bits two, twice), and unit [Q, 1].

    The unit is that of products with the code's numbers.

    x4 to x7 are used with 4 bits alone.
    """
    most = larger(larger(tl.abs(x0), tl.abs(x1)), larger(tl.abs(x2), tl.abs(x3)))
    if BITS == 4:
        most = larger(most, larger(larger(tl.abs(x4), tl.abs(x5)), larger(tl.abs(x6), tl.abs(x7))))
    most = tl.reduce(most, 2, larger, keep_dims=True)
    exponent = most.to(tl.int32, bitcast=True) & 0x7F800000
    exponent = tl.minimum(tl.maximum(exponent, 0x01000000), 0x7E000000)  # whose inverse is a number, too
    inverse = (0x7F000000 - exponent).to(tl.float32, bitcast=True)
    first = pair(x0 * inverse, x1 * inverse, CAPABILITY)
    second = pair(x2 * inverse, x3 * inverse, CAPABILITY)
    third, fourth = first, second
    if BITS == 4:
        third = pair(x4 * inverse, x5 * inverse, CAPABILITY)
        fourth = pair(x6 * inverse, x7 * inverse, CAPABILITY)
    unit = tl.sum(exponent.to(tl.float32, bitcast=True), axis=2) * half_unit(CODE, CAPABILITY)
    return first, second, third, fourth, unit


@triton.jit
def half_of(pairs, SECOND: tl.constexpr):
    """Return the first or second half of pairs as float16, exactly as float32."""
    bits = (pairs >> 16) if SECOND else pairs
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def number_of(words, pairs, INDEX: tl.constexpr, CODE: tl.constexpr):
    """Return the number at INDEX of each word, in units of ``half_unit``, in Triton's interpreter."""
    if is_table(CODE):
        return half_of(tl.load(pairs + ((words >> (4 * INDEX)) & 15)), False)
    else:
        return fp8_value((words >> (8 * INDEX)) & 0xFF)


@triton.jit
def half_product(
    words, first, second, third, fourth, table, pairs, BITS: tl.constexpr, CODE: tl.constexpr, CAPABILITY: tl.constexpr
):
    """Multiply the numbers of words [Q, N, C, 4] by what ``halve_activations`` returned -> float32 [Q, N, C].

    ``table`` is what ``share_table`` returned for ``pairs``.
    """
    if CAPABILITY > 0:
        w0, w1, w2, w3 = four(words)
        a0, a1, a2, a3 = four(first)
        b0, b1, b2, b3 = four(second)
        if BITS == 4:
            c0, c1, c2, c3 = four(third)
            d0, d1, d2, d3 = four(fourth)
            return tl.inline_asm_elementwise(
                product_assembly(CODE, CAPABILITY), "=&f" + ",r" * 21,
                [w0, w1, w2, w3, table, a0, b0, c0, d0, a1, b1, c1, d1, a2, b2, c2, d2, a3, b3, c3, d3],
                tl.float32, True, 1,
            )  # fmt: skip
        else:
            return tl.inline_asm_elementwise(
                product_assembly(CODE, CAPABILITY), "=&f" + ",r" * 13,
                [w0, w1, w2, w3, table, a0, b0, a1, b1, a2, b2, a3, b3], tl.float32, True, 1,
            )  # fmt: skip
    else:
        total = number_of(words, pairs, 0, CODE) * half_of(first, False)
        total += number_of(words, pairs, 1, CODE) * half_of(first, True)
        total += number_of(words, pairs, 2, CODE) * half_of(second, False)
        total += number_of(words, pairs, 3, CODE) * half_of(second, True)
        if BITS == 4:
            total += number_of(words, pairs, 4, CODE) * half_of(third, False)
            total += number_of(words, pairs, 5, CODE) * half_of(third, True)
            total += number_of(words, pairs, 6, CODE) * half_of(fourth, False)
            total += number_of(words, pairs, 7, CODE) * half_of(fourth, True)
        return tl.sum(total, axis=len(total.shape) - 1)
