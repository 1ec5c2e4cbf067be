"""Decode attention: one new row per conversation over its KV cache, cut into splits that run in parallel.

Addresses and lengths of keys and values are read from device memory, so that one captured graph serves caches that
grow, other images and other conversations:

- ``Addresses``: each row's own keys and values in each layer, [kv_heads, tokens, head_dim], wherever they are,
- ``limits`` in self-attention: int32 [B], the new row's position; it sees all keys up to and including its own,
- ``limits`` in cross-attention: int32 [B, 2], the first vision token and the end of the range.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.addresses import Addresses
from mllama_cli.kernels.cuda.float8 import float8_unit, float8_value
from mllama_cli.kernels.cuda.launch import capability, gdc_wait, launch
from mllama_cli.kernels.cuda.layout import offset_of
from mllama_cli.kernels.cuda.low_rank import SUM_COPIES, Following, Sums, add_to_sums

LOG2_E = 1.4426950408889634
TARGET_PROGRAMS = 256
"""Programs that a launch should have: about two for each of a large GPU's multiprocessors."""

MAX_SPLITS = 32
NEXT_RANKS_AT_ONCE = 16
"""Ranks of a following product's A that a program holds in registers."""

FLOAT8_BLOCK, FLOAT8_WARPS = 64, 2
"""On an H200, 64 images of 4 tiles take 0.246 ms a layer so; 0.28 ms with 4 warps, and 0.394 in bfloat16."""


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

    ROWS is GROUP * TOKENS padded to 16, QUERIES to a power of two. The next kernel may not start early: its prefetching
    would delay the keys and values here.

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
    blocks = tl.maximum((end - begin + SPLITS * BLOCK - 1) // (SPLITS * BLOCK), 1)
    start = begin + split * blocks * BLOCK
    stop = tl.minimum(start + blocks * BLOCK, end)
    active = (end - begin + blocks * BLOCK - 1) // (blocks * BLOCK)
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


class Scratch:
    """Partial results of the splits of ``batch`` conversations, and counters of the splits that are done."""

    def __init__(self, batch: int, heads: int, dim: int, splits: int, device: torch.device) -> None:
        self.sums = torch.empty(batch, heads, splits, dim, dtype=torch.float32, device=device)
        self.largest = torch.empty(batch, heads, splits, dtype=torch.float32, device=device)
        self.total = torch.empty(batch, heads, splits, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(batch, heads, dtype=torch.int32, device=device)
        self.splits = splits


def splits_for(batch: int, kv_heads: int, minimum: int = 1) -> int:
    """Return how many programs share a key head's keys, a power of two; at least ``minimum``, up to MAX_SPLITS."""
    wanted = min(max(minimum, TARGET_PROGRAMS // (batch * kv_heads)), MAX_SPLITS)
    return 1 << (wanted.bit_length() - 1)


def tokens_together(heads: int, kv_heads: int) -> int:
    """Return for how many tokens a program reads the same keys in no more time: it computes 16 rows at once."""
    together: int = 16 // triton.next_power_of_2(heads // kv_heads)
    return max(together, 1)


def decode_attention(
    query: Tensor,
    out: Tensor,
    scratch: Scratch,
    addresses: Addresses,
    limits: Tensor,
    *,
    cache_index: int,
    kv_heads: int,
    dim: int,
    key: Tensor | None = None,
    value: Tensor | None = None,
    rotation: Tensor | None = None,
    stored: bool = False,
    tokens: int = 1,
    norm: Tensor | None = None,
    eps: float = 0.0,
    out_interleave: int = 1,
    following: Following | None = None,
    block: int | None = None,
    warps: int | None = None,
) -> None:
    """Write the attention of the new rows to out [B, heads * dim]; see the top of this file.

    Self-attention takes ``query`` [B, heads * dim], ``key`` and ``value`` [B, kv_heads * dim] before the ``rotation``
    float32 [B, 2, dim / 2] (cosines and sines), and writes key and value into the cache at the row's position. Rows of
    one conversation in the same launch would miss each other's keys: ``store_rows`` first, then ``stored``.
    Cross-attention takes ``query`` before its ``norm``; ``tokens`` successive rows, up to ``tokens_together``, of one
    conversation read its keys and values together, each with limits of its own. Rows may have any stride, keys the same
    as values. ``following`` is that of ``following_by_heads``, for single tokens.
    """
    heads = out.shape[1] // dim
    batch, device = out.shape[0], out.device
    group = heads // kv_heads
    assert tokens == 1 or (rotation is None and batch % tokens == 0 and tokens <= tokens_together(heads, kv_heads))
    queries = triton.next_power_of_2(group * tokens)
    if key is None or value is None:
        key = value = query
    assert key.stride(0) == value.stride(0)
    is_float8 = addresses.base.dtype == torch.uint8
    if block is None:  # several blocks are in flight at a time, in 100 KiB of a multiprocessor's memory
        block = FLOAT8_BLOCK if is_float8 else 128 // addresses.base.element_size()
    if warps is None:
        warps = FLOAT8_WARPS if is_float8 else 4
    assert following is None or tokens == 1
    launch(
        attention_kernel, (kv_heads, scratch.splits, batch // tokens), query, key, value,
        norm if norm is not None else query, rotation if rotation is not None else query,
        addresses.base, addresses.table, addresses.strides, addresses.scales, limits,
        scratch.sums, scratch.largest, scratch.total, scratch.arrived, out,
        *((out, out) if following is None else (following.a, following.sums.copies)),
        1.0 if following is None else 1 / following.sums.unit, eps, LOG2_E * dim**-0.5,
        query.stride(0), key.stride(0), addresses.table.stride(0), cache_index,
        kv_heads, group, tokens, max(16, queries), queries, dim, dim // 2, scratch.splits,
        min(scratch.splits, max(16 // tokens, 1)), block,
        out_interleave, rotation is None, stored, 0 if following is None else following.sums.ranks,
        NEXT_RANKS_AT_ONCE, capability(device), device=device, warps=warps,
    )  # fmt: skip


def following_by_heads(a: Tensor, sums: Sums, kv_heads: int, dim: int) -> Following:
    """Return A [ranks, heads * dim] of the product after ``decode_attention``.

    It becomes [times, kv_heads, queries * dim, NEXT_RANKS_AT_ONCE], with queries padded to a power of two.
    """
    queries = triton.next_power_of_2(a.shape[1] // (kv_heads * dim))
    by_head = a.view(a.shape[0], kv_heads, -1, dim)
    more = (0, 0, 0, queries - by_head.shape[2], 0, 0, 0, -a.shape[0] % NEXT_RANKS_AT_ONCE)
    padded = F.pad(by_head, more).unflatten(0, (-1, NEXT_RANKS_AT_ONCE)).flatten(3)
    return Following(padded.permute(0, 2, 3, 1).contiguous(), sums)


def store_rows(
    key: Tensor,
    value: Tensor,
    rotation: Tensor,
    addresses: Addresses,
    positions: Tensor,
    *,
    cache_index: int,
    kv_heads: int,
    dim: int,
) -> None:
    """Write new rows' key, rotated, and value [B, kv_heads * dim] into their caches at ``positions`` int32 [B]."""
    assert key.stride(0) == value.stride(0)
    launch(
        store_kernel, (kv_heads, key.shape[0]), key, value, rotation, addresses.base, addresses.table,
        addresses.strides, positions, key.stride(0), addresses.table.stride(0), cache_index, dim, dim // 2,
        device=key.device, warps=1,
    )  # fmt: skip
