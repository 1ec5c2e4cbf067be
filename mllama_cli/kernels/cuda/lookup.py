"""Decode numbers that are not integers: codes of a table of 16 values, and floats of 8 bits (E4M3).

The lanes of a warp hold a table, each an entry, and a shuffle reads the entry of the lane that a code names: one
instruction for each number, exact in float32. For activations of 16 bits, kernels/cuda/halves.py reads two at a time.
"""

import triton
import triton.language as tl

from mllama_cli.kernels.codes import TABLES

NF4 = tl.constexpr(TABLES["nf4"])
FP4 = tl.constexpr(TABLES["fp4"])

SHUFFLE_ASSEMBLY = tl.constexpr("shfl.sync.idx.b32 $0, $1, $2, 0x101F, 0xFFFFFFFF;")

NATIVE_FP8 = tl.constexpr(89)
"""The compute capability from which a GPU has an instruction that converts two of these floats."""

NATIVE_FP8_ASSEMBLY = tl.constexpr("""{
.reg .b16 low, high;
.reg .b32 pair<2>;
.reg .b16 half<4>;
mov.b32 {low, high}, $4;
cvt.rn.f16x2.e4m3x2 pair0, low;
cvt.rn.f16x2.e4m3x2 pair1, high;
mov.b32 {half0, half1}, pair0;
mov.b32 {half2, half3}, pair1;
cvt.f32.f16 $0, half0;
cvt.f32.f16 $1, half1;
cvt.f32.f16 $2, half2;
cvt.f32.f16 $3, half3;
}""")

SHIFTED_FP8_ASSEMBLY = tl.constexpr("""{
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


@triton.constexpr_function
def single(shape):
    """Return the shape with one element and as many dimensions."""
    return [1] * len(shape)


@triton.jit
def look_up(words, INDEX: tl.constexpr, CODE: tl.constexpr):
    """Return the values of the codes at INDEX of each word, on a GPU.

    Lanes 0 to 15 and 16 to 31 each hold the table. The shuffle keeps to a lane's own half (bit 0x1000) and ignores what
    is above the lower four bits of its index. Every lane of a warp must take part.
    """
    nothing = tl.full(single(words.shape), 0, tl.int32)
    lane = tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r,r", [nothing], tl.int32, True, 1)
    entry = table_value(lane & 15, CODE)
    return tl.inline_asm_elementwise(
        SHUFFLE_ASSEMBLY, "=f,f,r", [entry, words >> (4 * INDEX)], tl.float32, False, 1,
    )  # fmt: skip


@triton.constexpr_function
def is_table(code):
    """Return whether numbers of this code are values of a table."""
    return code in TABLES


@triton.jit
def word_of_fp8(words, CAPABILITY: tl.constexpr):
    """Return the four floats in each word, as a tuple, divided by ``unit_of``.

    Before NATIVE_FP8 they are divided by 256: shifted by a bit, they are float16 numbers, which have one bit more of
    exponent.
    """
    ASSEMBLY: tl.constexpr = NATIVE_FP8_ASSEMBLY if CAPABILITY >= NATIVE_FP8 else SHIFTED_FP8_ASSEMBLY
    return tl.inline_asm_elementwise(
        ASSEMBLY, "=f,=f,=f,=f,r", [words], (tl.float32, tl.float32, tl.float32, tl.float32), True, 1,
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
