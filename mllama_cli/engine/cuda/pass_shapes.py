"""How many tokens captured passes read (passes.py), and which prompts they read faster than other ways."""

from collections.abc import Sequence
from dataclasses import dataclass

from mllama_cli.engine.forward import MAX_PREFILL_BATCH

PASS_TOKENS = (16, 32, 64, 96, 128, 192, 256)
"""Rows of a graph. More tokens are read faster by the network's own operations: here each row reads its caches.

On an H200 the 11B's take 6 ms after a text of up to 64 tokens. With 42 new tokens for each of 1, 2, 4 and 5 images they
take 7.7, 8.1, 10.4 and 11.6 ms (64, 96, 192 and 256 rows).
"""

MAX_READ_POSITIONS = 2**19
"""Positions that all rows together may read: beyond, operations that read a cache once for all rows are faster."""

ROW_GROUP = 16
"""Successive rows of a conversation, which read the keys of images together.

On an H200, the passes above take 8.4, 9.6, 12.3 and 13.2 ms in groups of 4, and 8.4, 9.0, 12.3 and 13.2 in groups of 8.
"""


@dataclass(frozen=True)
class PassShape:
    """The rows of a pass, and whether any of them sees an image."""

    rows: int
    with_images: bool


def fits(counts: Sequence[tuple[int, int]]) -> bool:
    """Return whether a pass reads these faster than other ways: of each conversation (cached tokens, new ones)."""
    rows = sum(rows_of(new) for _, new in counts)
    read = sum(new * (cached + new) for cached, new in counts)
    return 0 < rows <= PASS_TOKENS[-1] and len(counts) <= MAX_PREFILL_BATCH and read <= MAX_READ_POSITIONS


def shape_of(tokens: int, *, with_images: bool) -> PassShape:
    """Return the smallest shape for so many tokens, at most PASS_TOKENS[-1]."""
    return PassShape(next(rows for rows in PASS_TOKENS if rows >= tokens), with_images)


def rows_of(tokens: int) -> int:
    """Return how many rows so many ids of a conversation take."""
    return -(-tokens // ROW_GROUP) * ROW_GROUP
