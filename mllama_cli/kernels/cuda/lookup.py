"""Decode numbers that are not integers: codes of a table of 16 values, and floats of 8 bits (E4M3).

A table is read in one of two ways. The lanes of a warp hold it, each an entry, and a shuffle reads the entry of the
lane that a code names: one instruction for each number, exact in float32. Or, for 16-bit activations, shared memory
holds the values of all pairs of codes, in 16 bits each: an address, a read and two permutations of bytes for two
numbers, which is half the work for the unit that does shuffles and reads of shared memory.
"""

import triton
import triton.language as tl

from mllama_cli.kernels.codes import TABLES

NF4 = tl.constexpr(TABLES["nf4"])
FP4 = tl.constexpr(TABLES["fp4"])

SHUFFLE_ASSEMBLY = tl.constexpr("shfl.sync.idx.b32 $0, $1, $2, 0x101F, 0xFFFFFFFF;")

PAIR_BIAS = tl.constexpr(3.0)
"""What is added to the values of pairs: all are then between 2 and 4, as floats of 16 bits whose first byte is 0x40."""

PAIR_TABLE_ASSEMBLY = tl.constexpr("""{
.shared .align 128 .b8 pairs_of_codes[32768];
mov.u32 $0, pairs_of_codes;
}""")
STORE_PAIR_ASSEMBLY = tl.constexpr("""{
.reg .b32 pair;
or.b32 pair, $2, $3;
st.shared.v4.b32 [$1], {pair, pair, pair, pair};
mov.b32 $0, 0;
}""")
LANE_ADDRESS_ASSEMBLY = tl.constexpr("""{
.reg .b32 lane;
mov.u32 lane, %laneid;
shl.b32 lane, lane, 2;
add.u32 $0, $1, lane;
}""")
PAIRS_ASSEMBLY = tl.constexpr("""{
.reg .b32 address<4>, pair<4>;
dp4a.u32.u32 address0, $8, 0x00000080, $9;
dp4a.u32.u32 address1, $8, 0x00008000, $9;
dp4a.u32.u32 address2, $8, 0x00800000, $9;
dp4a.u32.u32 address3, $8, 0x80000000, $9;
ld.shared.b32 pair0, [address0];
ld.shared.b32 pair1, [address1];
ld.shared.b32 pair2, [address2];
ld.shared.b32 pair3, [address3];
prmt.b32 $0, pair0, 0x40000000, 0x7104;
prmt.b32 $1, pair0, 0x40000000, 0x7324;
prmt.b32 $2, pair1, 0x40000000, 0x7104;
prmt.b32 $3, pair1, 0x40000000, 0x7324;
prmt.b32 $4, pair2, 0x40000000, 0x7104;
prmt.b32 $5, pair2, 0x40000000, 0x7324;
prmt.b32 $6, pair3, 0x40000000, 0x7104;
prmt.b32 $7, pair3, 0x40000000, 0x7324;
}""")
"""The dot product of four bytes with 128 in one place is that byte times 128, the stride of the table: an address."""

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


@triton.jit
def pair_value(codes, CODE: tl.constexpr):
    """Return PAIR_BIAS plus the values of codes, rounded to multiples of 2^-14."""
    bits = (table_value(codes, CODE) + PAIR_BIAS).to(tl.int32, bitcast=True)
    return ((bits + 0x80) & -256).to(tl.float32, bitcast=True)


@triton.jit
def pair_bits(codes, CODE: tl.constexpr):
    """Return the table's entries for bytes of two codes, as what to OR: the first code's value is in the lower half."""
    first = (pair_value(codes & 15, CODE).to(tl.int32, bitcast=True) >> 8) & 0xFFFF
    return first, pair_value(codes >> 4, CODE).to(tl.int32, bitcast=True) << 8


@triton.jit
def write_pair_table(CODE: tl.constexpr, PAIRS: tl.constexpr, CAPABILITY: tl.constexpr):
    """Write the values of all pairs of codes to 32 KiB of shared memory; return each lane's address [1, 1, 1] of them.

    Each lane of a warp reads a copy in a bank of its own, so that lanes never wait for each other. All threads wait
    here; nothing is done, and zeros returned, without PAIRS or a GPU.
    """
    nothing = tl.full([1, 1, 1], 0, tl.int32)
    if PAIRS and CAPABILITY > 0:
        base = tl.inline_asm_elementwise(PAIR_TABLE_ASSEMBLY, "=r", [], tl.int32, False, 1)
        quads = tl.arange(0, 2048)
        first, second = pair_bits(quads // 8, CODE)
        tl.inline_asm_elementwise(
            STORE_PAIR_ASSEMBLY, "=r,r,r,r", [base + quads * 16, first, second], tl.int32, False, 1
        )
        tl.debug_barrier()
        return tl.inline_asm_elementwise(LANE_ADDRESS_ASSEMBLY, "=r,r", [nothing + base], tl.int32, False, 1)
    else:
        return nothing


@triton.jit
def word_of_pairs(words, table):
    """Return PAIR_BIAS plus the values of the eight codes in each word, as a tuple, from each lane's ``table``."""
    return tl.inline_asm_elementwise(
        PAIRS_ASSEMBLY, "=f,=f,=f,=f,=f,=f,=f,=f,r,r", [words, table],
        (tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32), True, 1,
    )  # fmt: skip


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
