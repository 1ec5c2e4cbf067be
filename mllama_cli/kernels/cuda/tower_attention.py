"""Attention of the vision tower: heads of 80 dimensions as 64 + 16, read where the q/k/v product left them.

Most attention kernels run 80 dimensions as 128. One launch attends from all tokens: real ones over all keys, of which
those of the repeated tile carry a bias, and padding over the real keys (model/vision_layers.py). Its work is cut into
segments, a block of queries over a range of blocks of keys (tower_plan.py); some segments are parts of a block's keys,
and their results are combined by a second kernel.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mllama_cli.kernels.cuda.attention_api import LOG2_E
from mllama_cli.kernels.cuda.tower_plan import Tile, plan

FIRST, SECOND = 64, 16
"""A head's dimensions are multiplied in two parts, since Triton's blocks are powers of two."""

TILE = Tile(rows=128, keys=64, warps=4, stages=3, resident=2)
"""The fastest of twelve on an H200: 0.52 ms for four tiles, where cuDNN takes 0.66 with its copies."""

COMBINED_ROWS = 16
"""Rows whose parts one program combines."""


@triton.jit
def fields_of(table):
    """Return the FIELDS numbers of this program's entry; see ``Plan``."""
    entry = table + tl.program_id(0) * 8
    base = tl.load(entry)
    head = tl.load(entry + 1)
    first_row = tl.load(entry + 2)
    begin = tl.load(entry + 3)
    end = tl.load(entry + 4)
    plain = tl.load(entry + 5)
    skip = tl.load(entry + 6)
    part = tl.load(entry + 7)
    return base, head, first_row, begin, end, plain, skip, part


@triton.jit
def scores_of(q_first, q_second, keys_first, keys_second, row, head,
              HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):  # fmt: skip
    """Multiply the queries by a block of keys, which starts at ``row`` of all tokens."""
    column = (HEADS + head) * (FIRST + SECOND)
    scores = tl.dot(q_first, keys_first.load([row, column]).T)
    return tl.dot(q_second, keys_second.load([row, column + FIRST]).T, scores)


@triton.jit
def accumulate(scores, top, bias, best, total, out_first, out_second, keys_first, keys_second, row, head, scale,
               HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):  # fmt: skip
    """Add a block's values, weighted by its scores, to the sums; ``top`` is its largest logarithm of each row."""
    column = (2 * HEADS + head) * (FIRST + SECOND)
    top = tl.maximum(best, top)
    weights = tl.math.exp2(scores * scale - (top - bias)[:, None])
    shrink = tl.math.exp2(best - top)
    total = total * shrink + tl.sum(weights, axis=1)
    out_first *= shrink[:, None]
    out_second *= shrink[:, None]
    values_first = keys_first.load([row, column])
    values_second = keys_second.load([row, column + FIRST])
    weights = weights.to(values_first.dtype)
    out_first = tl.dot(weights, values_first, out_first)
    out_second = tl.dot(weights, values_second, out_second)
    return top, total, out_first, out_second


@triton.jit(do_not_specialize=["tokens", "real", "counted", "out_rows"])
def segment_kernel(
    queries_first, queries_second, keys_first, keys_second, segments, out, part_out, part_best, part_total,
    tokens, real, counted, out_rows, bias, scale,
    HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Attend from one block of one head's queries to some blocks of keys in each program.

    Logarithms are in base 2. Plain blocks of keys come first, then those of which some rows do not see some keys, or
    of which only some carry the ``bias``.
    """
    DIM: tl.constexpr = FIRST + SECOND
    base, head, first_row, begin, end, plain, skip, part = fields_of(segments)

    q_first = queries_first.load([base + first_row, head * DIM])
    q_second = queries_second.load([base + first_row, head * DIM + FIRST])
    best = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out_first = tl.zeros([ROWS, FIRST], tl.float32)
    out_second = tl.zeros([ROWS, SECOND], tl.float32)

    stop = tl.minimum(end, plain)
    for unit in range(begin, stop):
        start = (unit + (unit >= skip).to(tl.int32)) * KEYS
        added = tl.where(start >= counted, bias, 0.0)
        scores = scores_of(q_first, q_second, keys_first, keys_second, base + start, head, HEADS, FIRST, SECOND)
        best, total, out_first, out_second = accumulate(
            scores, tl.max(scores, axis=1) * scale + added, added, best, total, out_first, out_second,
            keys_first, keys_second, base + start, head, scale, HEADS, FIRST, SECOND,
        )  # fmt: skip

    row = first_row + tl.arange(0, ROWS)
    limit = tl.where(row < real, tokens, real)
    for unit in tl.range(tl.maximum(begin, plain), end, num_stages=1):
        start = tl.where((unit == plain) & (skip < unit), skip, unit) * KEYS
        scores = scores_of(q_first, q_second, keys_first, keys_second, base + start, head, HEADS, FIRST, SECOND)
        key = start + tl.arange(0, KEYS)
        scores = scores * scale + tl.where(key >= counted, bias, 0.0)[None, :]
        scores = tl.where(key[None, :] < limit[:, None], scores, -1e30)
        best, total, out_first, out_second = accumulate(
            scores, tl.max(scores, axis=1), 0.0, best, total, out_first, out_second,
            keys_first, keys_second, base + start, head, 1.0, HEADS, FIRST, SECOND,
        )  # fmt: skip

    column = tl.arange(0, FIRST)
    rest = FIRST + tl.arange(0, SECOND)
    if part < 0:
        out_first /= total[:, None]
        out_second /= total[:, None]
        image = base // tokens
        target = out + ((image * out_rows + row).to(tl.int64) * HEADS + head)[:, None] * DIM
        inside = (row < out_rows)[:, None]
        tl.store(target + column[None, :], out_first.to(out.dtype.element_ty), mask=inside)
        tl.store(target + rest[None, :], out_second.to(out.dtype.element_ty), mask=inside)
    else:
        index = part * ROWS + tl.arange(0, ROWS)
        tl.store(part_best + index, best)
        tl.store(part_total + index, total)
        kept = part_out + index[:, None] * DIM
        tl.store(kept + column[None, :], out_first)
        tl.store(kept + rest[None, :], out_second)


@triton.jit(do_not_specialize=["tokens", "out_rows"])
def combine_kernel(
    pieces, out, part_out, part_best, part_total, tokens, out_rows,
    HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Combine the parts of some rows of one block of queries in each program."""
    DIM: tl.constexpr = FIRST + SECOND
    base, head, first_row, begin, end, _, _, _ = fields_of(pieces)
    near = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    column = tl.arange(0, FIRST)
    rest = FIRST + tl.arange(0, SECOND)
    best = tl.full([CHUNK], -float("inf"), tl.float32)
    total = tl.zeros([CHUNK], tl.float32)
    out_first = tl.zeros([CHUNK, FIRST], tl.float32)
    out_second = tl.zeros([CHUNK, SECOND], tl.float32)
    for part in range(begin, end):
        index = part * ROWS + near
        theirs = tl.load(part_best + index)
        top = tl.maximum(best, theirs)
        shrink = tl.math.exp2(best - top)
        weight = tl.math.exp2(theirs - top)
        total = total * shrink + tl.load(part_total + index) * weight
        source = part_out + index[:, None] * DIM
        out_first = out_first * shrink[:, None] + tl.load(source + column[None, :]) * weight[:, None]
        out_second = out_second * shrink[:, None] + tl.load(source + rest[None, :]) * weight[:, None]
        best = top
    row = first_row + near
    inside = (row < out_rows)[:, None]
    target = out + ((base // tokens * out_rows + row).to(tl.int64) * HEADS + head)[:, None] * DIM
    tl.store(target + column[None, :], (out_first / total[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(target + rest[None, :], (out_second / total[:, None]).to(out.dtype.element_ty), mask=inside)


class Launch:
    """One attention call: its plan, its result, and the scratch for results of parts."""

    def __init__(self, qkv: Tensor, real: int, counted: int, repeats: int, rows: int, tile: Tile) -> None:
        self.batch, self.tokens, _, self.heads, self.dim = qkv.shape
        assert self.dim == FIRST + SECOND
        if repeats <= 1:
            repeats, counted = 1, self.tokens
        self.rows, self.tile = rows, tile
        self.plan = plan(self.batch, self.heads, self.tokens, real, counted, rows, tile, qkv.device)
        self.flat = qkv.reshape(self.batch * self.tokens, 3 * self.heads * self.dim)
        self.out = qkv.new_empty(self.batch, rows, self.heads * self.dim)
        self.part_out = qkv.new_empty(self.plan.parts * tile.rows, self.dim, dtype=torch.float32)
        self.part_best, self.part_total = (self.part_out.new_empty(self.plan.parts * tile.rows) for _ in range(2))
        self.arguments = (
            self.plan.segments, self.out, self.part_out, self.part_best, self.part_total,
            self.tokens, real, counted, rows, math.log2(repeats), LOG2_E * self.dim**-0.5,
        )  # fmt: skip
        """What a kernel of segments takes after its tensor descriptors."""

    def combine(self) -> Tensor:
        """Combine the parts once all segments are launched; return the result."""
        if self.plan.parts:
            combine_kernel[(self.plan.pieces.shape[0], self.tile.rows // COMBINED_ROWS)](
                self.plan.pieces, self.out, self.part_out, self.part_best, self.part_total, self.tokens, self.rows,
                self.heads, FIRST, SECOND, self.tile.rows, COMBINED_ROWS, num_warps=2,
            )  # fmt: skip
        return self.out


def tower_attention(qkv: Tensor, real: int, counted: int, repeats: int, *, rows: int, tile: Tile = TILE) -> Tensor:
    """Attend as ``tower_attention`` of kernels/tower.py from qkv [N, tokens, 3, heads, 80] -> [N, rows, heads * 80]."""
    call = Launch(qkv, real, counted, repeats, rows, tile)

    def blocks(count: int, width: int) -> TensorDescriptor:
        return TensorDescriptor(call.flat, list(call.flat.shape), list(call.flat.stride()), [count, width])

    segment_kernel[(call.plan.segments.shape[0],)](
        blocks(tile.rows, FIRST), blocks(tile.rows, SECOND), blocks(tile.keys, FIRST), blocks(tile.keys, SECOND),
        *call.arguments, call.heads, FIRST, SECOND, tile.rows, tile.keys,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return call.combine()
