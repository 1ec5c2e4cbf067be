"""How the attention of the vision tower is cut into segments, so that all multiprocessors end at about one time."""

import heapq
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mllama_cli.kernels.cuda.launch import multiprocessors

FIELDS = 8
"""int32 numbers that describe a segment."""

SEGMENT_COST = 2
"""What starting and ending a segment costs, in blocks of keys."""

NOWHERE = 2**30


@dataclass(frozen=True)
class Tile:
    """How the kernel cuts its work: rows and keys in a block, warps, loads in flight, programs on a multiprocessor."""

    rows: int
    keys: int
    warps: int
    stages: int
    resident: int


@dataclass(frozen=True)
class Work:
    """A block of queries: which image's first token, head and row; how many blocks of keys, and which of them last."""

    base: int
    head: int
    row: int
    units: int
    plain: int
    skip: int


def work_of(batch: int, heads: int, tokens: int, real: int, counted: int, rows: int, tile: Tile) -> list[Work]:
    """Return the blocks of queries [0, rows), those with the most keys first.

    Keys from ``counted`` on carry a bias. Blocks of keys in order: [0, skip) and (skip, plain] plain, then skip, ...
    """
    keys = tile.keys
    work = []
    for row in range(0, rows, tile.rows):
        skip = NOWHERE
        if row >= real:
            units, plain = -(-real // keys), real // keys
        elif row + tile.rows > real and rows > real:
            units, plain = -(-tokens // keys), min(real, counted) // keys
        else:
            units, plain = -(-tokens // keys), tokens // keys
            if counted < tokens and counted % keys and counted // keys < plain:
                skip = counted // keys
                plain -= 1
        work += [Work(image * tokens, head, row, units, plain, skip) for image in range(batch) for head in range(heads)]
    return sorted(work, key=lambda one: -one.units)


def makespan(costs: list[int], places: int) -> int:
    """Return when the last of these is done if each goes to the first place that is free."""
    ends = [0] * places
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def cut(work: list[Work], places: int) -> tuple[list[int], int]:
    """Return how many parts each of ``work`` is cut into so that all places end soon, and the expected end."""
    best = ([1] * len(work), makespan([one.units + SEGMENT_COST for one in work], places))
    for parts in (2, 3, 4, 5, 6, 8):
        for share in range(1, 9):
            whole = max(0, len(work) - max(1, share * places // (4 * parts)))
            counts = [1] * whole + [min(parts, one.units) for one in work[whole:]]
            costs = []
            for one, count in zip(work, counts, strict=True):
                costs += [-(-one.units // count) + SEGMENT_COST + (count > 1)] * count
            end = makespan(costs, places)
            if end < best[1]:
                best = (counts, end)
    return best


@dataclass(frozen=True)
class Plan:
    segments: Tensor
    """int32 [segments, FIELDS] for ``segment_kernel``."""
    pieces: Tensor
    """int32 [blocks of queries that are cut, FIELDS] for ``combine_kernel``."""
    parts: int


@cache
def plan(
    batch: int, heads: int, tokens: int, real: int, counted: int, rows: int, tile: Tile, device: torch.device
) -> Plan:
    """Cut the attention of one shape into segments; see ``work_of``."""
    work = work_of(batch, heads, tokens, real, counted, rows, tile)
    counts, _ = cut(work, multiprocessors(device) * tile.resident)
    segments: list[list[int]] = []
    pieces: list[list[int]] = []
    parts = 0
    for one, count in zip(work, counts, strict=True):
        for index in range(count):
            begin, end = one.units * index // count, one.units * (index + 1) // count
            slot = -1 if count == 1 else parts + index
            segments.append([one.base, one.head, one.row, begin, end, one.plain, one.skip, slot])
        if count > 1:
            pieces.append([one.base, one.head, one.row, parts, parts + count, 0, 0, 0])
            parts += count

    def table(rows_of: list[list[int]]) -> Tensor:
        return torch.tensor(rows_of or [[0] * FIELDS], dtype=torch.int32, device=device)

    return Plan(table(segments), table(pieces), parts)
