"""Experiment: the tower's attention in Gluon, one warp that loads and two or three groups of warps that multiply."""
import math
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_init, warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mllama_cli.kernels.cuda import tower_attention as base
from mllama_cli.kernels.cuda.attention import LOG2_E


@gluon.jit
def load_partition(
    keys_first, keys_second, k1, k2, v1, v2, k_ready, k_free, v_ready, v_free,
    base, head, begin, end, skip, plain,
    HEADS: gl.constexpr, FIRST: gl.constexpr, SECOND: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):
    DIM: gl.constexpr = FIRST + SECOND
    k_column = (HEADS + head) * DIM
    v_column = (2 * HEADS + head) * DIM
    for unit in range(begin, end):
        step = unit - begin
        stage = step % STAGES
        phase = (step // STAGES) & 1
        block = unit
        if unit < plain:
            if unit >= skip:
                block = unit + 1
        else:
            if unit == plain:
                if skip < unit:
                    block = skip
        row = base + block * KEYS
        bar = k_ready.index(stage)
        mbarrier.wait(k_free.index(stage), phase ^ 1)
        mbarrier.expect(bar, KEYS * DIM * 2)
        tma.async_copy_global_to_shared(keys_first, [row, k_column], bar, k1.index(stage))
        tma.async_copy_global_to_shared(keys_second, [row, k_column + FIRST], bar, k2.index(stage))
        bar = v_ready.index(stage)
        mbarrier.wait(v_free.index(stage), phase ^ 1)
        mbarrier.expect(bar, KEYS * DIM * 2)
        tma.async_copy_global_to_shared(keys_first, [row, v_column], bar, v1.index(stage))
        tma.async_copy_global_to_shared(keys_second, [row, v_column + FIRST], bar, v2.index(stage))


@gluon.jit
def mask_block(scores, unit, plain, skip, row, real, tokens, counted, lift, KEYS: gl.constexpr, SL: gl.constexpr):
    start = unit
    if unit == plain:
        if skip < unit:
            start = skip
    key = start * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, SL))
    limit = gl.where(row < real, tokens, real)
    scores = scores + gl.expand_dims(gl.where(key >= counted, lift, 0.0), 0)
    return gl.where(gl.expand_dims(key, 0) < gl.expand_dims(limit, 1), scores, -1e30)


@gluon.jit
def multiply_partition(
    q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, order, out, part_out, part_best, part_total,
    base, head, first_row, begin, end, plain, skip, part, tokens, real, counted, out_rows, bias, scale,
    HEADS: gl.constexpr, FIRST: gl.constexpr, SECOND: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, GROUPS: gl.constexpr, TURNS: gl.constexpr, GROUP: gl.constexpr, WARPS: gl.constexpr,
):
    """Attend from rows [64 * GROUP, 64 * GROUP + 64) of the block."""
    DIM: gl.constexpr = FIRST + SECOND
    SL: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, KEYS, 16])
    L1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, FIRST, 16])
    L2: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, SECOND, 16])
    P1: gl.constexpr = gl.DotOperandLayout(0, L1, 2)
    P2: gl.constexpr = gl.DotOperandLayout(0, L2, 2)
    element: gl.constexpr = q1.dtype
    row = first_row + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SL))
    lift = bias / scale

    mbarrier.wait(q_ready.index(GROUP), 0)
    qa = q1.index(GROUP)
    qb = q2.index(GROUP)
    mbarrier.wait(k_ready.index(0), 0)
    none = gl.zeros([ROWS, KEYS], gl.float32, layout=SL)
    if TURNS:
        mbarrier.wait(order.index(GROUP), 1 if GROUP == 0 else 0)
    coming = warpgroup_mma(qa, k1.index(0).permute((1, 0)), none, use_acc=False, is_async=True)
    coming = warpgroup_mma(qb, k2.index(0).permute((1, 0)), coming, is_async=True)
    if TURNS:
        mbarrier.arrive(order.index((GROUP + 1) % GROUPS), count=1)
    scores = warpgroup_mma_wait(0, deps=[coming])
    mbarrier.arrive(k_free.index(0), count=1)
    added = 0.0
    if begin >= plain:
        scores = mask_block(scores, begin, plain, skip, row, real, tokens, counted, lift, KEYS, SL)
    else:
        if (begin + (begin >= skip).to(gl.int32)) * KEYS >= counted:
            added = bias
    best = gl.max(scores, 1) * scale + added
    weights = gl.exp2(scores * scale - gl.expand_dims(best - added, 1))
    total = gl.sum(weights, 1)
    weights = weights.to(element)
    o1 = gl.zeros([ROWS, FIRST], gl.float32, layout=L1)
    o2 = gl.zeros([ROWS, SECOND], gl.float32, layout=L2)

    for unit in range(begin + 1, end):
        step = unit - begin
        stage = step % STAGES
        phase = (step // STAGES) & 1
        last = (step - 1) % STAGES
        last_phase = ((step - 1) // STAGES) & 1
        mbarrier.wait(k_ready.index(stage), phase)
        if TURNS:
            mbarrier.wait(order.index(GROUP), (step & 1) ^ (1 if GROUP == 0 else 0))
        coming = warpgroup_mma(qa, k1.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
        coming = warpgroup_mma(qb, k2.index(stage).permute((1, 0)), coming, is_async=True)
        mbarrier.wait(v_ready.index(last), last_phase)
        t1 = warpgroup_mma(gl.convert_layout(weights, P1), v1.index(last), o1, is_async=True)
        t2 = warpgroup_mma(gl.convert_layout(weights, P2), v2.index(last), o2, is_async=True)
        if TURNS:
            mbarrier.arrive(order.index((GROUP + 1) % GROUPS), count=1)
        scores = warpgroup_mma_wait(2, deps=[coming])
        mbarrier.arrive(k_free.index(stage), count=1)
        added = 0.0
        if unit >= plain:
            scores = mask_block(scores, unit, plain, skip, row, real, tokens, counted, lift, KEYS, SL)
        else:
            if (unit + (unit >= skip).to(gl.int32)) * KEYS >= counted:
                added = bias
        top = gl.maximum(best, gl.max(scores, 1) * scale + added)
        fresh = gl.exp2(scores * scale - gl.expand_dims(top - added, 1))
        shrink = gl.exp2(best - top)
        total = total * shrink + gl.sum(fresh, 1)
        best = top
        o1, o2 = warpgroup_mma_wait(0, deps=[t1, t2])
        mbarrier.arrive(v_free.index(last), count=1)
        o1 = o1 * gl.convert_layout(gl.expand_dims(shrink, 1), L1)
        o2 = o2 * gl.convert_layout(gl.expand_dims(shrink, 1), L2)
        weights = fresh.to(element)

    step = end - 1 - begin
    stage = step % STAGES
    mbarrier.wait(v_ready.index(stage), (step // STAGES) & 1)
    t1 = warpgroup_mma(gl.convert_layout(weights, P1), v1.index(stage), o1, is_async=True)
    t2 = warpgroup_mma(gl.convert_layout(weights, P2), v2.index(stage), o2, is_async=True)
    o1, o2 = warpgroup_mma_wait(0, deps=[t1, t2])

    near1 = GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, L1))
    near2 = GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, L2))
    column1 = gl.expand_dims(gl.arange(0, FIRST, layout=gl.SliceLayout(0, L1)), 0)
    column2 = gl.expand_dims(FIRST + gl.arange(0, SECOND, layout=gl.SliceLayout(0, L2)), 0)
    if part < 0:
        inverse = gl.expand_dims(1.0 / total, 1)
        image = base // tokens
        o1 = o1 * gl.convert_layout(inverse, L1)
        o2 = o2 * gl.convert_layout(inverse, L2)
        rows1 = ((image * out_rows + first_row + near1) * HEADS + head) * DIM
        rows2 = ((image * out_rows + first_row + near2) * HEADS + head) * DIM
        gl.store(out + gl.expand_dims(rows1, 1) + column1, o1.to(element), mask=gl.expand_dims(first_row + near1 < out_rows, 1))
        gl.store(out + gl.expand_dims(rows2, 1) + column2, o2.to(element), mask=gl.expand_dims(first_row + near2 < out_rows, 1))
    else:
        BLOCK: gl.constexpr = q1.shape[0] * ROWS
        index = part * BLOCK + GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SL))
        gl.store(part_best + index, best)
        gl.store(part_total + index, total)
        gl.store(part_out + gl.expand_dims((part * BLOCK + near1) * DIM, 1) + column1, o1)
        gl.store(part_out + gl.expand_dims((part * BLOCK + near2) * DIM, 1) + column2, o2)


@gluon.jit(do_not_specialize=["tokens", "real", "counted", "out_rows"])
def segment_kernel(
    queries_first, queries_second, keys_first, keys_second, segments, out, part_out, part_best, part_total,
    tokens, real, counted, out_rows, bias, scale,
    HEADS: gl.constexpr, FIRST: gl.constexpr, SECOND: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr,
    STAGES: gl.constexpr, GROUPS: gl.constexpr, TURNS: gl.constexpr, REGISTERS: gl.constexpr, num_warps: gl.constexpr,
):
    DIM: gl.constexpr = FIRST + SECOND
    element: gl.constexpr = queries_first.dtype
    entry = segments + gl.program_id(0) * 8
    base = gl.load(entry)
    head = gl.load(entry + 1)
    first_row = gl.load(entry + 2)
    begin = gl.load(entry + 3)
    end = gl.load(entry + 4)
    plain = gl.load(entry + 5)
    skip = gl.load(entry + 6)
    part = gl.load(entry + 7)

    q1 = gl.allocate_shared_memory(element, [GROUPS, ROWS, FIRST], queries_first.layout)
    q2 = gl.allocate_shared_memory(element, [GROUPS, ROWS, SECOND], queries_second.layout)
    k1 = gl.allocate_shared_memory(element, [STAGES, KEYS, FIRST], keys_first.layout)
    k2 = gl.allocate_shared_memory(element, [STAGES, KEYS, SECOND], keys_second.layout)
    v1 = gl.allocate_shared_memory(element, [STAGES, KEYS, FIRST], keys_first.layout)
    v2 = gl.allocate_shared_memory(element, [STAGES, KEYS, SECOND], keys_second.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    order = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(GROUPS):
        mbarrier.init(q_ready.index(index), count=1)
        mbarrier.init(order.index(index), count=1)
    for index in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(index), count=1)
        mbarrier.init(k_free.index(index), count=GROUPS)
        mbarrier.init(v_ready.index(index), count=1)
        mbarrier.init(v_free.index(index), count=GROUPS)
    fence_async_shared()
    for index in gl.static_range(GROUPS):
        row = base + first_row + index * ROWS
        bar = q_ready.index(index)
        mbarrier.expect(bar, ROWS * DIM * 2)
        tma.async_copy_global_to_shared(queries_first, [row, head * DIM], bar, q1.index(index))
        tma.async_copy_global_to_shared(queries_second, [row, head * DIM + FIRST], bar, q2.index(index))

    if GROUPS == 2:
        gl.warp_specialize(
            [
                (multiply_partition, (
                    q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, order, out, part_out, part_best, part_total,
                    base, head, first_row, begin, end, plain, skip, part, tokens, real, counted, out_rows, bias, scale,
                    HEADS, FIRST, SECOND, ROWS, KEYS, STAGES, GROUPS, TURNS, 0, num_warps,
                )),
                (multiply_partition, (
                    q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, order, out, part_out, part_best, part_total,
                    base, head, first_row, begin, end, plain, skip, part, tokens, real, counted, out_rows, bias, scale,
                    HEADS, FIRST, SECOND, ROWS, KEYS, STAGES, GROUPS, TURNS, 1, num_warps,
                )),
                (load_partition, (
                    keys_first, keys_second, k1, k2, v1, v2, k_ready, k_free, v_ready, v_free, base, head, begin, end, skip, plain,
                    HEADS, FIRST, SECOND, KEYS, STAGES,
                )),
            ],
            [num_warps,  1], [REGISTERS,  24],
        )
    else:
        gl.warp_specialize(
            [
                (multiply_partition, (
                    q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, order, out, part_out, part_best, part_total,
                    base, head, first_row, begin, end, plain, skip, part, tokens, real, counted, out_rows, bias, scale,
                    HEADS, FIRST, SECOND, ROWS, KEYS, STAGES, GROUPS, TURNS, 0, num_warps,
                )),
                (multiply_partition, (
                    q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, order, out, part_out, part_best, part_total,
                    base, head, first_row, begin, end, plain, skip, part, tokens, real, counted, out_rows, bias, scale,
                    HEADS, FIRST, SECOND, ROWS, KEYS, STAGES, GROUPS, TURNS, 1, num_warps,
                )),
                (multiply_partition, (
                    q1, q2, k1, k2, v1, v2, q_ready, k_ready, k_free, v_ready, v_free, order, out, part_out, part_best, part_total,
                    base, head, first_row, begin, end, plain, skip, part, tokens, real, counted, out_rows, bias, scale,
                    HEADS, FIRST, SECOND, ROWS, KEYS, STAGES, GROUPS, TURNS, 2, num_warps,
                )),
                (load_partition, (
                    keys_first, keys_second, k1, k2, v1, v2, k_ready, k_free, v_ready, v_free, base, head, begin, end, skip, plain,
                    HEADS, FIRST, SECOND, KEYS, STAGES,
                )),
            ],
            [num_warps, num_warps,  1], [REGISTERS, REGISTERS,  24],
        )


def attention(qkv, real, counted, repeats, *, rows=None, keys=128, stages=2, groups=2, registers=240, warps=4, group_rows=64, turns=False):
    batch, tokens, _, heads, dim = qkv.shape
    rows = tokens if rows is None else rows
    if repeats == 1:
        counted = tokens
    tile = base.Tile(group_rows * groups, keys, 8, stages, 1, False)
    todo = base.plan(batch, heads, tokens, real, counted, rows, tile, qkv.device)
    flat = qkv.reshape(batch * tokens, 3 * heads * dim)
    out = qkv.new_empty(batch, rows, heads * dim)
    part_out = qkv.new_empty(todo.parts * tile.rows, dim, dtype=torch.float32)
    part_best, part_total = (part_out.new_empty(todo.parts * tile.rows) for _ in range(2))
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[qkv.dtype]

    def blocks(count, width):
        layout = gl.NVMMASharedLayout.get_default_for([count, width], dtype)
        return TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [count, width], layout)

    segment_kernel[(todo.segments.shape[0],)](
        blocks(group_rows, 64), blocks(group_rows, 16), blocks(keys, 64), blocks(keys, 16),
        todo.segments, out, part_out, part_best, part_total,
        tokens, real, counted, rows, math.log2(repeats), LOG2_E * dim**-0.5,
        heads, 64, 16, group_rows, keys, stages, groups, turns, registers, num_warps=warps,
    )
    if todo.parts:
        # a block of 192 rows is combined in chunks of 16 too
        base.combine_kernel[(todo.pieces.shape[0], tile.rows // 16)](
            todo.pieces, out, part_out, part_best, part_total, tokens, rows, heads, 64, 16, tile.rows, 16, num_warps=2,
        )
    return out
