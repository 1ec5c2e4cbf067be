"""Decode float8_e4m3fn, four numbers at a time, to float16 for matrix units."""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.lookup import NATIVE_FP8, fp8_value

NATIVE_ASSEMBLY = tl.constexpr("""{
.reg .b16 low, high;
mov.b32 {low, high}, $2;
cvt.rn.f16x2.e4m3x2 $0, low;
cvt.rn.f16x2.e4m3x2 $1, high;
}""")

SHIFTED_ASSEMBLY = tl.constexpr("""{
.reg .b32 low, high, shifted;
prmt.b32 low, $2, 0, 0x1404;
prmt.b32 high, $2, 0, 0x3424;
shr.b32 shifted, low, 1;
and.b32 shifted, shifted, 0x3F803F80;
lop3.b32 $0, low, 0x80008000, shifted, 0xEA;
shr.b32 shifted, high, 1;
and.b32 shifted, shifted, 0x3F803F80;
lop3.b32 $1, high, 0x80008000, shifted, 0xEA;
}""")


@triton.jit
def float8_value(codes, dtype: tl.constexpr, CAPABILITY: tl.constexpr, IN_PLACE: tl.constexpr):
    """Return the numbers whose bits are in uint8, divided by ``float8_unit``, exactly.

    Without IN_PLACE the compiler does not decode where the result is needed but before numbers change threads. That is
    better for values: matrix units take two rows of them together, which threads would have to read byte by byte.
    """
    if CAPABILITY == 0:
        return fp8_value(codes.to(tl.int16)).to(dtype)
    else:
        ASSEMBLY: tl.constexpr = NATIVE_ASSEMBLY if CAPABILITY >= NATIVE_FP8 else SHIFTED_ASSEMBLY
        return tl.inline_asm_elementwise(ASSEMBLY, "=r,=r,r", [codes], tl.float16, IN_PLACE, 4).to(dtype)


@triton.constexpr_function
def float8_unit(capability):
    """Return what decoded numbers are divided by: before NATIVE_FP8, they are only shifted by a bit."""
    return 1.0 if capability >= 89 else 256.0
