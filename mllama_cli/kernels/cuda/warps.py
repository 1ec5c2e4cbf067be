"""Let each warp of a program multiply rows of its own, with no barrier between rows.

The threads of a program make the operands of products together, each of them once, and hand them to every warp through
shared memory. Triton would convert one tensor after the other, with two barriers for each, and move what is stored.
"""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.halves import TABLE_BYTES
from mllama_cli.kernels.cuda.lookup import is_table

STATIC_BYTES = tl.constexpr(48 * 1024)
"""What a kernel may declare of shared memory, the table of ``halves.share_table`` included."""

QUAD_BYTES = tl.constexpr(4 * 16 + 8)
"""What the operands of a quad of words take: 16 bytes for each word, and their offset and unit."""

STORE_QUAD_ASSEMBLY = tl.constexpr("st.shared.v4.b32 [$1], {$2, $3, $4, $5};\nmov.b32 $0, 0;")
STORE_PAIR_ASSEMBLY = tl.constexpr("st.shared.v2.b32 [$1], {$2, $3};\nmov.b32 $0, 0;")
SAME_ASSEMBLY = tl.constexpr("mov.b32 $0, $1;")
LOAD_QUAD_ASSEMBLY = tl.constexpr("ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];")
LOAD_PAIR_ASSEMBLY = tl.constexpr("ld.shared.v2.b32 {$0, $1}, [$2];")

FEW_LANES = tl.constexpr(64)
"""Up to so many lanes for a row, its few warps may store the same numbers; more of them would take longer."""


@triton.constexpr_function
def operands_assembly(quads):
    """Return PTX for the address of shared memory for the operands of quads."""
    return f"{{\n.shared .align 16 .b8 operands[{quads * QUAD_BYTES.value}];\nmov.u32 $0, operands;\n}}"


@triton.constexpr_function
def store_assembly(bits):
    """Return PTX that stores $2, of so many bits, to $1 where $3 is not zero."""
    return f"{{\n.reg .pred kept;\nsetp.ne.b32 kept, $3, 0;\n@kept st.global.b{bits} [$1], $2;\nmov.b32 $0, 0;\n}}"


@triton.constexpr_function
def goes_through_memory(quads, code, staged, halves, capability):
    """Return whether ``hand_out`` uses shared memory for the operands of quads, if the tile asks for it."""
    table = TABLE_BYTES.value if is_table(code) else 0
    fits = quads * QUAD_BYTES.value + table <= STATIC_BYTES.value
    return staged and fits and capability > 0 and (code == "int" or halves)


@triton.jit
def chunked(numbers, CHUNKS: tl.constexpr):
    """Return [C * Q, 1, 4] as [Q, 1, C, 4], or without the last dimension."""
    Q: tl.constexpr = numbers.shape[0] // CHUNKS
    if len(numbers.shape) == 2:
        return tl.permute(tl.reshape(numbers, [CHUNKS, Q, 1]), [1, 2, 0])
    else:
        return tl.permute(tl.reshape(numbers, [CHUNKS, Q, 1, 4]), [1, 2, 0, 3])


@triton.jit
def hand_out(
    x, CODE: tl.constexpr, HALVES: tl.constexpr, CHUNKS: tl.constexpr, STAGED: tl.constexpr, CAPABILITY: tl.constexpr
):
    """Return what ``operands_of`` returned for [C * Q, 1, 4], a tuple, as [Q, 1, C, 4] and [Q, 1, C]."""
    if goes_through_memory(x[0].shape[0], CODE, STAGED, HALVES, CAPABILITY):
        return hand_out_in_memory(x, CODE, CHUNKS)
    else:
        x0, x1, x2, x3 = chunked(x[0], CHUNKS), chunked(x[1], CHUNKS), chunked(x[2], CHUNKS), chunked(x[3], CHUNKS)
        x4 = chunked(x[4], CHUNKS)
        if CODE == "int":
            return x0, x1, x2, x3, x4, chunked(x[5], CHUNKS)
        elif HALVES:
            return x0, x1, x2, x3, x4
        else:
            return x0, x1, x2, x3, x4, chunked(x[5], CHUNKS), chunked(x[6], CHUNKS), chunked(x[7], CHUNKS)


@triton.jit
def hand_out_in_memory(x, CODE: tl.constexpr, CHUNKS: tl.constexpr):
    """Do what ``hand_out`` does in shared memory, on a GPU. All threads wait for each other once."""
    QUADS: tl.constexpr = x[0].shape[0]
    base = tl.inline_asm_elementwise(operands_assembly(QUADS), "=r", [], tl.int32, False, 1)
    quads = tl.arange(0, QUADS)[:, None]
    words = tl.arange(0, 4)[None, None, :] * QUADS + quads[:, :, None]  # words first: adjacent lanes, adjacent banks
    tl.inline_asm_elementwise(
        STORE_QUAD_ASSEMBLY, "=r" + ",r" * 5, [base + words * 16, x[0], x[1], x[2], x[3]], tl.int32, False, 1
    )
    if CODE == "int":
        offset, unit = x[4], x[5].to(tl.int32, bitcast=True)
    else:
        offset, unit = quads, x[4].to(tl.int32, bitcast=True)
    tl.inline_asm_elementwise(
        STORE_PAIR_ASSEMBLY, "=r" + ",r" * 3, [base + QUADS * 64 + quads * 8, offset, unit], tl.int32, False, 1
    )
    tl.debug_barrier()
    start = tl.full([1, 1, 1], 0, tl.int32) + base
    start = tl.inline_asm_elementwise(SAME_ASSEMBLY, "=r,r", [start], tl.int32, False, 1)  # what uses it comes after
    Q: tl.constexpr = QUADS // CHUNKS
    quads = tl.arange(0, Q)[:, None, None] + tl.arange(0, CHUNKS)[None, None, :] * Q
    words = tl.arange(0, 4)[None, None, None, :] * QUADS + quads[:, :, :, None]
    x0, x1, x2, x3 = tl.inline_asm_elementwise(
        LOAD_QUAD_ASSEMBLY, "=r,=r,=r,=r,r", [start[:, :, :, None] + words * 16],
        (tl.int32, tl.int32, tl.int32, tl.int32), True, 1,
    )  # fmt: skip
    offset, unit = tl.inline_asm_elementwise(
        LOAD_PAIR_ASSEMBLY, "=r,=r,r", [start + QUADS * 64 + quads * 8], (tl.int32, tl.int32), True, 1
    )
    unit = unit.to(tl.float32, bitcast=True)
    if CODE == "int":
        return x0, x1, x2, x3, offset, unit
    else:
        return x0, x1, x2, x3, unit


@triton.jit
def store_rows(target, result, kept, LANES: tl.constexpr, CAPABILITY: tl.constexpr):
    """Store the numbers of rows that are ``kept``, each of which LANES lanes have."""
    if CAPABILITY > 0 and LANES <= FEW_LANES:
        here = kept.to(tl.int32)
        if result.dtype.primitive_bitwidth == 16:
            bits = result.to(tl.int16, bitcast=True)
            tl.inline_asm_elementwise(store_assembly(16), "=r,l,h,r", [target, bits, here], tl.int32, False, 1)
        else:
            bits = result.to(tl.int32, bitcast=True)
            tl.inline_asm_elementwise(store_assembly(32), "=r,l,r,r", [target, bits, here], tl.int32, False, 1)
    else:
        tl.store(target, result, mask=kept)
