"""The vision tower's attention in Gluon, Triton's lower level: a warp that loads, two groups of warps that multiply.

Each group of four warps has 64 rows. Its products run while it computes the softmax of the block before, and the groups
take turns in issuing products, so that one's softmax runs during the other's products: 0.48 ms for four tiles on an
H200, where the kernel of tower_attention.py takes 0.52. Plans, parts and numbers are as there.
"""

from torch import Tensor, bfloat16
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mllama_cli.kernels.cuda.tower_attention import FIRST, SECOND, Launch
from mllama_cli.kernels.cuda.tower_attention import fields_of as fields_of_triton
from mllama_cli.kernels.cuda.tower_plan import Tile

GROUP_ROWS = 64
TILE = Tile(rows=2 * GROUP_ROWS, keys=128, warps=4, stages=2, resident=1)
"""``warps`` of each group."""

REGISTERS, LOADING_REGISTERS = 240, 24
"""Registers of each thread that multiplies, and of each that loads."""


fields_of = gluon.jit(fields_of_triton.fn)


@gluon.jit
def block_of(unit, plain, skip):
    """Return which block of keys is the ``unit``th: see ``work_of``."""
    block = unit
    if unit < plain:
        if unit >= skip:
            block = unit + 1
    elif (unit == plain) & (skip < unit):
        block = skip
    return block


@gluon.jit
def load_partition(
    keys_first, keys_second, k1, k2, v1, v2, k_ready, k_free, v_ready, v_free,
    base, head, begin, end, skip, plain,
    HEADS: gl.constexpr, FIRST: gl.constexpr, SECOND: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Load each block of keys and of values into the next stage as soon as both groups are done with what it held."""
    DIM: gl.constexpr = FIRST + SECOND
    k_column = (HEADS + head) * DIM
    v_column = (2 * HEADS + head) * DIM
    for unit in range(begin, end):
        step = unit - begin
        stage = step % STAGES
        phase = (step // STAGES) & 1
        row = base + block_of(unit, plain, skip) * KEYS
        mbarrier.wait(k_free.index(stage), phase ^ 1)
        ready = k_ready.index(stage)
        mbarrier.expect(ready, KEYS * DIM * 2)
        tma.async_copy_global_to_shared(keys_first, [row, k_column], ready, k1.index(stage))
        tma.async_copy_global_to_shared(keys_second, [row, k_column + FIRST], ready, k2.index(stage))
        mbarrier.wait(v_free.index(stage), phase ^ 1)
        ready = v_ready.index(stage)
        mbarrier.expect(ready, KEYS * DIM * 2)
        tma.async_copy_global_to_shared(keys_first, [row, v_column], ready, v1.index(stage))
        tma.async_copy_global_to_shared(keys_second, [row, v_column + FIRST], ready, v2.index(stage))


@gluon.jit
def masked(scores, unit, plain, skip, row, real, tokens, counted, lift, KEYS: gl.constexpr, SCORES: gl.constexpr):
    """Lift the scores of counted keys, and hide the keys that a row does not see."""
    key = block_of(unit, plain, skip) * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, SCORES))
    limit = gl.where(row < real, tokens, real)
    scores = scores + gl.expand_dims(gl.where(key >= counted, lift, 0.0), 0)
    return gl.where(gl.expand_dims(key, 0) < gl.expand_dims(limit, 1), scores, -1e30)


@gluon.jit
def multiply_partition(
    q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, turn, out, part_out, part_best, part_total,
    base, head, first_row, begin, end, plain, skip, part, tokens, real, counted, out_rows, bias, scale,
    HEADS: gl.constexpr, FIRST: gl.constexpr, SECOND: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Attend from the rows of one group: ROWS * GROUP and those after it."""
    DIM: gl.constexpr = FIRST + SECOND
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 16])
    OUT_FIRST: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, FIRST, 16])
    OUT_SECOND: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, SECOND, 16])
    WEIGHTS_FIRST: gl.constexpr = gl.DotOperandLayout(0, OUT_FIRST, 2)
    WEIGHTS_SECOND: gl.constexpr = gl.DotOperandLayout(0, OUT_SECOND, 2)
    element: gl.constexpr = q1.dtype
    row = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
    lift = bias / scale

    mbarrier.wait(q_ready.index(GROUP), 0)
    q_first = q1.index(GROUP)
    q_second = q2.index(GROUP)
    mbarrier.wait(k_ready.index(0), 0)
    none = gl.zeros([ROWS, KEYS], gl.float32, layout=SCORES)
    mbarrier.wait(turn.index(GROUP), 1 - GROUP)
    coming = warpgroup_mma(q_first, k1.index(0).permute((1, 0)), none, use_acc=False, is_async=True)
    coming = warpgroup_mma(q_second, k2.index(0).permute((1, 0)), coming, is_async=True)
    mbarrier.arrive(turn.index(1 - GROUP), count=1)
    scores = warpgroup_mma_wait(0, deps=[coming])
    mbarrier.arrive(k_free.index(0), count=1)
    added = 0.0
    if begin >= plain:
        scores = masked(scores, begin, plain, skip, row, real, tokens, counted, lift, KEYS, SCORES)
    else:
        if block_of(begin, plain, skip) * KEYS >= counted:
            added = bias
    best = gl.max(scores, 1) * scale + added
    weights = gl.exp2(scores * scale - gl.expand_dims(best - added, 1))
    total = gl.sum(weights, 1)
    weights = weights.to(element)
    out_first = gl.zeros([ROWS, FIRST], gl.float32, layout=OUT_FIRST)
    out_second = gl.zeros([ROWS, SECOND], gl.float32, layout=OUT_SECOND)

    for unit in range(begin + 1, end):
        step = unit - begin
        stage = step % STAGES
        phase = (step // STAGES) & 1
        last = (step - 1) % STAGES
        last_phase = ((step - 1) // STAGES) & 1
        mbarrier.wait(k_ready.index(stage), phase)
        mbarrier.wait(turn.index(GROUP), (step & 1) ^ (1 - GROUP))
        # In flight during the softmax below: this block's values are multiplied in the next round.
        coming = warpgroup_mma(q_first, k1.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
        coming = warpgroup_mma(q_second, k2.index(stage).permute((1, 0)), coming, is_async=True)
        mbarrier.wait(v_ready.index(last), last_phase)
        sum_first = warpgroup_mma(gl.convert_layout(weights, WEIGHTS_FIRST), v1.index(last), out_first, is_async=True)
        sum_second = warpgroup_mma(
            gl.convert_layout(weights, WEIGHTS_SECOND), v2.index(last), out_second, is_async=True
        )
        mbarrier.arrive(turn.index(1 - GROUP), count=1)
        scores = warpgroup_mma_wait(2, deps=[coming])
        mbarrier.arrive(k_free.index(stage), count=1)
        added = 0.0
        if unit >= plain:
            scores = masked(scores, unit, plain, skip, row, real, tokens, counted, lift, KEYS, SCORES)
        else:
            if block_of(unit, plain, skip) * KEYS >= counted:
                added = bias
        top = gl.maximum(best, gl.max(scores, 1) * scale + added)
        fresh = gl.exp2(scores * scale - gl.expand_dims(top - added, 1))
        shrink = gl.exp2(best - top)
        total = total * shrink + gl.sum(fresh, 1)
        best = top
        out_first, out_second = warpgroup_mma_wait(0, deps=[sum_first, sum_second])
        mbarrier.arrive(v_free.index(last), count=1)
        out_first = out_first * gl.convert_layout(gl.expand_dims(shrink, 1), OUT_FIRST)
        out_second = out_second * gl.convert_layout(gl.expand_dims(shrink, 1), OUT_SECOND)
        weights = fresh.to(element)

    step = end - 1 - begin
    stage = step % STAGES
    mbarrier.wait(v_ready.index(stage), (step // STAGES) & 1)
    sum_first = warpgroup_mma(gl.convert_layout(weights, WEIGHTS_FIRST), v1.index(stage), out_first, is_async=True)
    sum_second = warpgroup_mma(gl.convert_layout(weights, WEIGHTS_SECOND), v2.index(stage), out_second, is_async=True)
    out_first, out_second = warpgroup_mma_wait(0, deps=[sum_first, sum_second])

    near1 = GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT_FIRST))
    near2 = GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT_SECOND))
    column1 = gl.expand_dims(gl.arange(0, FIRST, layout=gl.SliceLayout(0, OUT_FIRST)), 0)
    column2 = gl.expand_dims(FIRST + gl.arange(0, SECOND, layout=gl.SliceLayout(0, OUT_SECOND)), 0)
    if part < 0:
        inverse = gl.expand_dims(1.0 / total, 1)
        image = base // tokens
        out_first = out_first * gl.convert_layout(inverse, OUT_FIRST)
        out_second = out_second * gl.convert_layout(inverse, OUT_SECOND)
        rows1 = ((image * out_rows + first_row + near1) * HEADS + head) * DIM
        rows2 = ((image * out_rows + first_row + near2) * HEADS + head) * DIM
        inside1 = gl.expand_dims(first_row + near1 < out_rows, 1)
        inside2 = gl.expand_dims(first_row + near2 < out_rows, 1)
        gl.store(out + gl.expand_dims(rows1, 1) + column1, out_first.to(element), mask=inside1)
        gl.store(out + gl.expand_dims(rows2, 1) + column2, out_second.to(element), mask=inside2)
    else:
        BLOCK: gl.constexpr = 2 * ROWS
        index = part * BLOCK + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        gl.store(part_best + index, best)
        gl.store(part_total + index, total)
        gl.store(part_out + gl.expand_dims((part * BLOCK + near1) * DIM, 1) + column1, out_first)
        gl.store(part_out + gl.expand_dims((part * BLOCK + near2) * DIM, 1) + column2, out_second)


@gluon.jit(do_not_specialize=["tokens", "real", "counted", "out_rows"])
def segment_kernel(
    queries_first, queries_second, keys_first, keys_second, segments, out, part_out, part_best, part_total,
    tokens, real, counted, out_rows, bias, scale,
    HEADS: gl.constexpr, FIRST: gl.constexpr, SECOND: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, REGISTERS: gl.constexpr, LOADING_REGISTERS: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    """Attend from one block of one head's queries to some blocks of keys in each program."""
    DIM: gl.constexpr = FIRST + SECOND
    element: gl.constexpr = queries_first.dtype
    base, head, first_row, begin, end, plain, skip, part = fields_of(segments)

    q1 = gl.allocate_shared_memory(element, [2, ROWS, FIRST], queries_first.layout)
    q2 = gl.allocate_shared_memory(element, [2, ROWS, SECOND], queries_second.layout)
    k1 = gl.allocate_shared_memory(element, [STAGES, KEYS, FIRST], keys_first.layout)
    k2 = gl.allocate_shared_memory(element, [STAGES, KEYS, SECOND], keys_second.layout)
    v1 = gl.allocate_shared_memory(element, [STAGES, KEYS, FIRST], keys_first.layout)
    v2 = gl.allocate_shared_memory(element, [STAGES, KEYS, SECOND], keys_second.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(2):
        mbarrier.init(q_ready.index(index), count=1)
        mbarrier.init(turn.index(index), count=1)
    for index in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(index), count=1)
        mbarrier.init(k_free.index(index), count=2)
        mbarrier.init(v_ready.index(index), count=1)
        mbarrier.init(v_free.index(index), count=2)
    fence_async_shared()
    for index in gl.static_range(2):
        row = base + first_row + index * ROWS
        ready = q_ready.index(index)
        mbarrier.expect(ready, ROWS * DIM * 2)
        tma.async_copy_global_to_shared(queries_first, [row, head * DIM], ready, q1.index(index))
        tma.async_copy_global_to_shared(queries_second, [row, head * DIM + FIRST], ready, q2.index(index))

    gl.warp_specialize(
        [
            (multiply_partition, (
                q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, turn,
                out, part_out, part_best, part_total, base, head, first_row, begin, end, plain, skip, part,
                tokens, real, counted, out_rows, bias, scale, HEADS, FIRST, SECOND, ROWS, KEYS, STAGES, 0, num_warps,
            )),
            (multiply_partition, (
                q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, turn,
                out, part_out, part_best, part_total, base, head, first_row, begin, end, plain, skip, part,
                tokens, real, counted, out_rows, bias, scale, HEADS, FIRST, SECOND, ROWS, KEYS, STAGES, 1, num_warps,
            )),
            (load_partition, (
                keys_first, keys_second, k1, k2, v1, v2, k_ready, k_free, v_ready, v_free,
                base, head, begin, end, skip, plain, HEADS, FIRST, SECOND, KEYS, STAGES,
            )),
        ],
        [num_warps, 1], [REGISTERS, LOADING_REGISTERS],
    )  # fmt: skip


def tower_attention(qkv: Tensor, real: int, counted: int, repeats: int, *, rows: int) -> Tensor:
    """Attend as ``tower_attention`` of kernels/tower.py from qkv [N, tokens, 3, heads, 80] -> [N, rows, heads * 80]."""
    call = Launch(qkv, real, counted, repeats, rows, TILE)
    dtype = gl.bfloat16 if qkv.dtype == bfloat16 else gl.float16

    def blocks(count: int, width: int) -> TensorDescriptor:
        layout = gl.NVMMASharedLayout.get_default_for([count, width], dtype)
        return TensorDescriptor(call.flat, list(call.flat.shape), list(call.flat.stride()), [count, width], layout)

    segment_kernel[(call.plan.segments.shape[0],)](
        blocks(GROUP_ROWS, FIRST), blocks(GROUP_ROWS, SECOND), blocks(TILE.keys, FIRST), blocks(TILE.keys, SECOND),
        *call.arguments, call.heads, FIRST, SECOND, GROUP_ROWS, TILE.keys, TILE.stages, REGISTERS, LOADING_REGISTERS,
        num_warps=TILE.warps,
    )  # fmt: skip
    return call.combine()
