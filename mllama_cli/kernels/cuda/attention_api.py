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
from torch import Tensor

from mllama_cli.kernels.cuda.addresses import Addresses
from mllama_cli.kernels.cuda.attention import attention_kernel, store_kernel
from mllama_cli.kernels.cuda.launch import capability, launch, shared_bytes
from mllama_cli.kernels.cuda.low_rank import Following, Sums

LOG2_E = 1.4426950408889634
TARGET_PROGRAMS = 256
"""Programs that a launch should have: about two for each of a large GPU's multiprocessors."""

MAX_SPLITS = 32
NEXT_RANKS_AT_ONCE = 16
"""Ranks of a following product's A that a program holds in registers."""

MAX_QUERIES = {2: 64, 4: 16}
"""Queries that a program attends from at once, which stay in its registers, by the bytes of an element."""

FLOAT8_BLOCK, FLOAT8_WARPS = 64, 2
"""On an H200, 64 images of 4 tiles take 0.246 ms a layer so; 0.28 ms with 4 warps, and 0.394 in bfloat16."""

DEEP_PROGRAMS, DEEP_STAGES, DEEP_BYTES = 128, 5, 160 * 1024
"""Programs of one row's cross-attention, and their blocks in flight, on GPUs with that much shared memory.

On an H200, with products of 4 bits before and after it, 4 tiles take 24.0 us a layer so, and 28.1 with 256 programs.
"""


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
    return _power_of_two(min(max(minimum, TARGET_PROGRAMS // (batch * kv_heads)), MAX_SPLITS))


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def tokens_together(heads: int, kv_heads: int, dtype: torch.dtype) -> int:
    """Return for how many tokens a program should read the same keys."""
    together: int = MAX_QUERIES[dtype.itemsize] // triton.next_power_of_2(heads // kv_heads)
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
    Cross-attention takes ``query`` before its ``norm``; ``tokens`` successive rows of one conversation read its keys
    and values together (``tokens_together``), each with limits of its own. Rows may have any stride, keys the same
    as values. ``following`` is that of ``following_by_heads``, for single tokens.
    """
    heads = out.shape[1] // dim
    batch, device = out.shape[0], out.device
    group = heads // kv_heads
    assert tokens == 1 or (rotation is None and batch % tokens == 0)
    queries = triton.next_power_of_2(group * tokens)
    if key is None or value is None:
        key = value = query
    assert key.stride(0) == value.stride(0)
    is_float8 = addresses.base.dtype == torch.uint8
    if block is None:  # several blocks are in flight at a time, in 100 KiB of a multiprocessor's memory
        block = FLOAT8_BLOCK if is_float8 else 128 // addresses.base.element_size()
    if warps is None:
        warps = FLOAT8_WARPS if is_float8 and tokens == 1 else 4
    assert following is None or tokens == 1
    splits, options = scratch.splits, {}
    if rotation is None and batch == 1 and not is_float8 and shared_bytes(device) >= DEEP_BYTES:
        splits = _power_of_two(min(splits, max(DEEP_PROGRAMS // kv_heads, 1)))
        options["num_stages"] = DEEP_STAGES
    launch(
        attention_kernel, (kv_heads, splits, batch // tokens), query, key, value,
        norm if norm is not None else query, rotation if rotation is not None else query,
        addresses.base, addresses.table, addresses.strides, addresses.scales, limits,
        scratch.sums, scratch.largest, scratch.total, scratch.arrived, out,
        *((out, out) if following is None else (following.a, following.sums.copies)),
        1.0 if following is None else 1 / following.sums.unit, eps, LOG2_E * dim**-0.5,
        query.stride(0), key.stride(0), addresses.table.stride(0), cache_index,
        kv_heads, group, tokens, max(16, queries), queries, dim, dim // 2, splits,
        min(splits, max(16 // tokens, 1)), block,
        out_interleave, rotation is None, stored, 0 if following is None else following.sums.ranks,
        NEXT_RANKS_AT_ONCE, capability(device), device=device, warps=warps, **options,
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
