"""Decode numbers that are not integers: codes of a table of 16 values, and floats of 8 bits (E4M3).

A table is looked up in registers: one byte permutation chooses four bytes of eight, by the codes themselves. The table
is rounded to float16 there, an error of 0.01%.
"""

import struct
from collections.abc import Sequence

import triton
import triton.language as tl

from mllama_cli.kernels.codes import TABLES


def lookup_assembly(values: Sequence[float]) -> str:
    """Return PTX that looks up the eight codes in a word: float32 $0 to $7 of the int32 $8.

    A permutation with the lower three bits of four codes takes the low bytes of values 0 to 7, another those of values
    8 to 15, and a third chooses between them by the codes' highest bits; the same for the high bytes.
    """
    halves = b"".join(struct.pack("<e", value) for value in values)
    lines = [
        ".reg .b32 code<2>, side<2>, low, high, bytes<2>, pair<2>;",
        ".reg .b16 half<4>;",
        "and.b32 code0, $8, 0x77777777;",
        "shr.b32 side0, $8, 1;",
        "lop3.b32 side0, side0, 0x44444444, 0x32103210, 0xEA;",
        "shr.b32 code1, code0, 16;",
        "shr.b32 side1, side0, 16;",
    ]
    for word in (0, 1):
        for byte in (0, 1):
            one = halves[byte::2]
            first, second, third, fourth = (int.from_bytes(one[i : i + 4], "little") for i in (0, 4, 8, 12))
            lines += [
                f"prmt.b32 low, {first}, {second}, code{word};",
                f"prmt.b32 high, {third}, {fourth}, code{word};",
                f"prmt.b32 bytes{byte}, low, high, side{word};",
            ]
        for pair, order in ((0, 0x5140), (1, 0x7362)):
            lines += [
                f"prmt.b32 pair{pair}, bytes0, bytes1, {order};",
                f"mov.b32 {{half{2 * pair}, half{2 * pair + 1}}}, pair{pair};",
            ]
        lines += [f"cvt.f32.f16 ${4 * word + index}, half{index};" for index in range(4)]
    return "{ " + " ".join(lines) + " }"


NF4 = tl.constexpr(TABLES["nf4"])
FP4 = tl.constexpr(TABLES["fp4"])
NF4_ASSEMBLY = tl.constexpr(lookup_assembly(TABLES["nf4"]))
FP4_ASSEMBLY = tl.constexpr(lookup_assembly(TABLES["fp4"]))


FP8_ASSEMBLY = tl.constexpr("""{
.reg .b32 even, odd, sign;
.reg .b16 half<4>;
shl.b32 even, $4, 8;
shr.b32 odd, $4, 1;
and.b32 odd, odd, 0x3F803F80;
lop3.b32 odd, $4, 0x80008000, odd, 0xEA;
and.b32 sign, even, 0x80008000;
shr.b32 even, even, 1;
lop3.b32 even, even, 0x3F803F80, sign, 0xEA;
mov.b32 {half0, half2}, even;
mov.b32 {half1, half3}, odd;
cvt.f32.f16 $0, half0;
cvt.f32.f16 $1, half1;
cvt.f32.f16 $2, half2;
cvt.f32.f16 $3, half3;
}""")


@triton.jit
def word_of_table(words, CODE: tl.constexpr):
    """Return the values of the eight codes in each word, as a tuple."""
    ASSEMBLY: tl.constexpr = NF4_ASSEMBLY if CODE == "nf4" else FP4_ASSEMBLY
    return tl.inline_asm_elementwise(
        ASSEMBLY, "=f,=f,=f,=f,=f,=f,=f,=f,r", [words],
        (tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32), True, 1,
    )  # fmt: skip


@triton.jit
def word_of_fp8(words):
    """Return the four floats in each word divided by 256, as a tuple.

    Shifted by a bit, they are float16 numbers, which have one bit more of exponent.
    """
    return tl.inline_asm_elementwise(
        FP8_ASSEMBLY, "=f,=f,=f,=f,r", [words], (tl.float32, tl.float32, tl.float32, tl.float32), True, 1,
    )  # fmt: skip


@triton.jit
def pick(values, INDEX: tl.constexpr):
    """Return the value at INDEX of a tuple."""
    return values[INDEX]


@triton.jit
def table_value(codes, CODE: tl.constexpr):
    """Return the values of codes, exactly."""
    VALUES: tl.constexpr = NF4 if CODE == "nf4" else FP4
    value = tl.full(codes.shape, VALUES[0], tl.float32)
    for index in tl.static_range(1, 16):
        value = tl.where(codes == index, VALUES[index], value)
    return value


@triton.jit
def fp8_value(numbers):
    """Return the floats whose bits are in these integers, divided by 256, exactly."""
    bits = ((numbers & 0x80) << 8) | ((numbers & 0x7F) << 7)
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
