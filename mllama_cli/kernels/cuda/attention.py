"""Decode attention and the writing of keys and values into a cache; see kernels/cuda/attention_api.py."""

import triton
import triton.language as tl

from mllama_cli.kernels.cuda.float8 import float8_unit, float8_value
from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait
from mllama_cli.kernels.cuda.layout import offset_of
from mllama_cli.kernels.cuda.low_rank import SUM_COPIES, add_to_sums


@triton.jit
def load_block(keys, values, block, stop, HALF: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Load both halves of BLOCK keys from ``block`` on, and their values; zeros from ``stop`` on."""
    tokens = block + tl.arange(0, BLOCK)
    half = tl.arange(0, HALF)
    live = (tokens < stop)[:, None]
    key = keys + tokens[:, None] * DIM + half[None, :]
    value = values + tokens[:, None] * DIM + tl.arange(0, DIM)[None, :]
    return tl.load(key, live, other=0.0), tl.load(key + HALF, live, other=0.0), tl.load(value, live, other=0.0)


@triton.jit
def tokens_of(batch, rows, GROUP: tl.constexpr, TOKENS: tl.constexpr):
    """Return the tokens of a program's rows, from ``batch`` on, and their query heads within the group."""
    if TOKENS == 1:
        return batch + rows * 0, rows
    else:
        return batch + rows // GROUP, rows % GROUP


@triton.jit(do_not_specialize=["cache_index"])
def attention_kernel(
    query, key, value, norm, rotation, base, table, strides, scales, limits, partial, partial_max, partial_sum, arrived,
    out, next_a, next_copies, next_scale, eps, scale, query_stride, key_stride, table_stride, cache_index,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, QUERIES: tl.constexpr,
    DIM: tl.constexpr, HALF: tl.constexpr, SPLITS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, INTERLEAVE: tl.constexpr, CROSS: tl.constexpr, STORED: tl.constexpr,
    NEXT_RANKS: tl.constexpr, NEXT_AT_ONCE: tl.constexpr, CAPABILITY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Attend from the query heads of one key head, of TOKENS tokens, to one split of the keys in each program.

    ROWS is GROUP * TOKENS padded to 16, QUERIES to a power of two. The next kernel may not start before keys and values
    are here: its prefetching would delay them.

    Head vectors are handled in halves because the rotation pairs element i with element i + HALF.

    The product that follows has NEXT_RANKS, and A here for the elements of a key head's queries, NEXT_AT_ONCE ranks
    after another.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    batch = tl.program_id(2) * TOKENS
    element = query.dtype.element_ty
    FLOAT8: tl.constexpr = base.dtype.element_ty == tl.uint8
    # What is multiplied: every float8 is a float16, to which GPUs turn it in less time than to bfloat16.
    factor: tl.constexpr = tl.float16 if FLOAT8 and element != tl.float32 else element
    rows = tl.arange(0, ROWS)
    half = tl.arange(0, HALF)
    whole = tl.arange(0, DIM)
    near = rows < GROUP * TOKENS
    row, mate = tokens_of(batch, rows, GROUP, TOKENS)
    # Addresses, limits and older keys do not change during a step: only the projections have to be waited for.
    # All offsets are multiples of 16 elements, so that 16 bytes can be read at once.
    offset = head * tl.multiple_of(tl.load(strides + batch), 16)
    entry = table + batch * table_stride + 2 * cache_index
    keys = base + (tl.multiple_of(tl.load(entry), 16) + offset)
    values = base + (tl.multiple_of(tl.load(entry + 1), 16) + offset)
    if CROSS:
        position = -1
        if TOKENS == 1:
            begin = tl.load(limits + 2 * batch)
            end = tl.load(limits + 2 * batch + 1)
        else:
            begins = tl.load(limits + 2 * row, near, other=2**30)
            ends = tl.load(limits + 2 * row + 1, near, other=0)
            begin = tl.min(begins, axis=0)
            end = tl.max(ends, axis=0)
    else:
        begin = 0
        position = tl.load(limits + batch)
        end = position + 1
    # Self-attention's splits are whole blocks, mostly one; cross-attention has many keys, which are split evenly.
    GRAIN: tl.constexpr = 16 if CROSS else BLOCK
    split_keys = tl.maximum((end - begin + SPLITS * GRAIN - 1) // (SPLITS * GRAIN), 1) * GRAIN
    start = begin + split * split_keys
    stop = tl.minimum(start + split_keys, end)
    active = (end - begin + split_keys - 1) // split_keys
    if split >= active:
        return
    if not (CROSS or STORED):  # mostly the only block; the new row is not in it yet and is inserted below
        key_first, key_second, block_values = load_block(keys, values, start, stop, HALF, DIM, BLOCK)
    gdc_wait(PDL)

    queries = query + (row * query_stride + (head * GROUP + mate) * DIM)[:, None] + half[None, :]
    q1 = tl.load(queries, mask=near[:, None], other=0.0).to(tl.float32)
    q2 = tl.load(queries + HALF, mask=near[:, None], other=0.0).to(tl.float32)
    if CROSS:
        inverse = tl.rsqrt((tl.sum(q1 * q1, axis=1) + tl.sum(q2 * q2, axis=1)) / DIM + eps)[:, None]
        first = (q1 * inverse * tl.load(norm + half).to(tl.float32)[None, :]).to(element).to(factor)
        second = (q2 * inverse * tl.load(norm + HALF + half).to(tl.float32)[None, :]).to(element).to(factor)
    else:
        cos = tl.load(rotation + batch * DIM + half)
        sin = tl.load(rotation + batch * DIM + HALF + half)
        first = (q1 * cos[None, :] - q2 * sin[None, :]).to(element)
        second = (q2 * cos[None, :] + q1 * sin[None, :]).to(element)
        if not STORED:
            own = batch * key_stride + head * DIM
            k1 = tl.load(key + own + half).to(tl.float32)
            k2 = tl.load(key + own + HALF + half).to(tl.float32)
            new_first = (k1 * cos - k2 * sin).to(element)
            new_second = (k2 * cos + k1 * sin).to(element)
            new_value = tl.load(value + own + whole)
            if start <= position and position < stop:  # this split holds the new row: write it into the cache
                tl.store(keys + position * DIM + half, new_first)
                tl.store(keys + position * DIM + HALF + half, new_second)
                tl.store(values + position * DIM + whole, new_value)

    if FLOAT8:
        head_scales = scales + (batch * table_stride + 2 * cache_index) * KV_HEADS + head
        scale *= tl.load(head_scales) * float8_unit(CAPABILITY)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, DIM], tl.float32)
    for block in range(start, stop, BLOCK):
        tokens = block + tl.arange(0, BLOCK)
        live = tokens < stop
        if CROSS or STORED:  # several blocks: the compiler pipelines loads at the start of an iteration
            key_first, key_second, block_values = load_block(keys, values, block, stop, HALF, DIM, BLOCK)
            if FLOAT8:
                key_first = float8_value(key_first, factor, CAPABILITY, True)
                key_second = float8_value(key_second, factor, CAPABILITY, True)
                block_values = float8_value(block_values, factor, CAPABILITY, False)
        else:
            fresh = (tokens == position)[:, None]
            key_first = tl.where(fresh, new_first[None, :], key_first)
            key_second = tl.where(fresh, new_second[None, :], key_second)
            block_values = tl.where(fresh, new_value[None, :], block_values)
        scores = tl.dot(first, tl.trans(key_first), input_precision="ieee")
        scores = tl.dot(second, tl.trans(key_second), scores, input_precision="ieee") * scale
        if TOKENS == 1:
            scores = tl.where(live[None, :], scores, float("-inf"))
        else:  # finite: a token may see none of these keys, but sees others
            sees = (tokens[None, :] >= begins[:, None]) & (tokens[None, :] < tl.minimum(ends, stop)[:, None])
            scores = tl.where(sees, scores, -1e30)
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(largest - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(factor), block_values, sums * shrink[:, None], input_precision="ieee")
        largest = higher
        if not (CROSS or STORED):
            key_first, key_second, block_values = load_block(keys, values, block + BLOCK, stop, HALF, DIM, BLOCK)
    gdc_launch_dependents(PDL and not CROSS)  # while splits are combined; it would delay the many blocks of an image
    if FLOAT8:
        sums *= tl.load(head_scales + KV_HEADS) * float8_unit(CAPABILITY)
    HEADS: tl.constexpr = KV_HEADS * GROUP
    if NEXT_RANKS > 0:  # by the time the splits are combined it has arrived
        next_index = tl.arange(0, QUERIES * DIM)[:, None] * NEXT_AT_ONCE + tl.arange(0, NEXT_AT_ONCE)[None, :]
        next_a += head * (QUERIES * DIM * NEXT_AT_ONCE)
        a_rows = tl.load(next_a + next_index)
    if NEXT_RANKS == 0 and active == 1:  # nothing to combine
        index = (head * GROUP + mate)[:, None] * DIM + whole[None, :]
        target = (row * (HEADS * DIM))[:, None] + offset_of(index, HEADS * DIM, INTERLEAVE)
        tl.store(out + target, (sums / total[:, None]).to(element), mask=near[:, None])
        return
    slots = ((row * KV_HEADS + head) * GROUP + mate) * SPLITS + split
    tl.store(partial_max + slots, largest, mask=near)
    tl.store(partial_sum + slots, total, mask=near)
    tl.store(partial + slots[:, None] * DIM + whole[None, :], sums, mask=near[:, None])

    # The last split to get here combines all of them.
    tl.debug_barrier()
    counter = arrived + batch * KV_HEADS + head
    if tl.atomic_add(counter, 1, sem="acq_rel") == active - 1:
        # All query heads of the group at once, and the splits of an element in one thread: sums need no exchange.
        member_row, member_mate = tokens_of(batch, tl.arange(0, QUERIES), GROUP, TOKENS)
        there_at_all = tl.arange(0, QUERIES) < GROUP * TOKENS
        index = (((member_row * KV_HEADS + head) * GROUP + member_mate) * SPLITS)[None, :, None]
        highest = tl.full([QUERIES, 1], float("-inf"), tl.float32)
        denominator = tl.zeros([QUERIES, 1], tl.float32)
        result = tl.zeros([QUERIES, DIM], tl.float32)
        for chunk in range(0, active, CHUNK):
            member = chunk + tl.arange(0, CHUNK)[:, None, None]
            there = (member < active) & there_at_all[None, :, None]
            held = partial + (index + member) * DIM + whole[None, None, :]
            parts = tl.load(held, mask=there, other=0.0, cache_modifier=".cg")
            maxima = tl.load(partial_max + index + member, mask=there, other=float("-inf"), cache_modifier=".cg")
            totals = tl.load(partial_sum + index + member, mask=there, other=0.0, cache_modifier=".cg")
            larger = tl.maximum(highest, tl.max(maxima, axis=0))
            share = tl.where(there, tl.exp2(maxima - larger[None, :, :]), 0.0)
            shrunk = tl.where(larger > float("-inf"), tl.exp2(highest - larger), 0.0)
            denominator = denominator * shrunk + tl.sum(totals * share, axis=0)
            result = result * shrunk + tl.sum(parts * share, axis=0)
            highest = larger
        within = (head * GROUP + member_mate)[:, None] * DIM + whole[None, :]
        target = (member_row * (HEADS * DIM))[:, None] + offset_of(within, HEADS * DIM, INTERLEAVE)
        attended = (result / denominator).to(element)
        tl.store(out + target, attended, mask=there_at_all[:, None])
        if NEXT_RANKS > 0:
            next_copies += batch * SUM_COPIES * NEXT_RANKS
            written = tl.where(there_at_all[:, None], attended, 0.0).to(tl.float32).reshape(QUERIES * DIM)[:, None]
            for first_rank in tl.static_range(0, NEXT_RANKS, NEXT_AT_ONCE):
                if first_rank > 0:
                    next_a += KV_HEADS * (QUERIES * DIM * NEXT_AT_ONCE)
                    a_rows = tl.load(next_a + next_index)
                ax = tl.sum(a_rows.to(tl.float32) * written, axis=0)
                ranks = first_rank + tl.arange(0, NEXT_AT_ONCE)
                add_to_sums(next_copies, head, ranks, ax, next_scale, NEXT_RANKS)
        tl.store(counter, 0)


@triton.jit(do_not_specialize=["cache_index"])
def store_kernel(
    key, value, rotation, base, table, strides, positions, key_stride, table_stride, cache_index,
    DIM: tl.constexpr, HALF: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write one row's rotated key and its value into its cache, for one key head in each program."""
    head = tl.program_id(0)
    batch = tl.program_id(1)
    half = tl.arange(0, HALF)
    whole = tl.arange(0, DIM)
    entry = table + batch * table_stride + 2 * cache_index
    offset = head * tl.load(strides + batch) + tl.load(positions + batch) * DIM
    keys = base + (tl.load(entry) + offset)
    values = base + (tl.load(entry + 1) + offset)
    cos = tl.load(rotation + batch * DIM + half)
    sin = tl.load(rotation + batch * DIM + HALF + half)
    gdc_wait(PDL)
    own = batch * key_stride + head * DIM
    first = tl.load(key + own + half).to(tl.float32)
    second = tl.load(key + own + HALF + half).to(tl.float32)
    element = key.dtype.element_ty
    tl.store(keys + half, (first * cos - second * sin).to(element))
    tl.store(keys + HALF + half, (second * cos + first * sin).to(element))
    tl.store(values + whole, tl.load(value + own + whole))
