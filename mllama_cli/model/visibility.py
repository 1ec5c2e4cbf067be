"""Compute which text rows see which images, by the model's own rule, from the positions of the image tokens.

An image is seen from its own token up to the next image token; images whose tokens are adjacent form a group and share
its end. The last group is seen up to the end, generated tokens included (docs/accuracy.md, C).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mllama_cli.kernels.ops import upload


@dataclass(frozen=True)
class ImageSpan:
    """Text rows [start, end) see this image; end None means up to the end."""

    start: int
    end: int | None


@dataclass(frozen=True)
class Segment:
    """Text rows [row_start, row_end) see the vision tokens [key_start, key_end) and no others."""

    row_start: int
    row_end: int
    key_start: int
    key_end: int


def image_spans(ids: Sequence[int], image_token: int) -> tuple[ImageSpan, ...]:
    """Return the rows that see each image, in order.

    >>> image_spans([9, 7, 7, 1, 2, 7, 3], 7)
    (ImageSpan(start=1, end=5), ImageSpan(start=2, end=5), ImageSpan(start=5, end=None))
    """
    starts = [row for row, token in enumerate(ids) if token == image_token]
    ends: list[int | None] = []
    following: int | None = None
    for index in reversed(range(len(starts))):
        if index + 1 < len(starts) and starts[index + 1] != starts[index] + 1:
            following = starts[index + 1]
        ends.append(following)
    return tuple(ImageSpan(start, end) for start, end in zip(starts, reversed(ends), strict=True))


def segments(
    spans: Sequence[ImageSpan], image_tokens: Sequence[int], first_row: int, end_row: int
) -> tuple[Segment, ...]:
    """Cut rows [first_row, end_row) where the set of visible images changes; rows are counted from ``first_row``.

    ``image_tokens`` has each image's number of vision tokens. Rows that see nothing are in no segment.
    """
    bounds = {first_row, end_row}
    bounds.update(row for span in spans for row in (span.start, span.end) if row and first_row < row < end_row)
    offsets = [0]
    for count in image_tokens:
        offsets.append(offsets[-1] + count)
    result = []
    edges = sorted(bounds)
    for start, end in pairwise(edges):
        # Images of a group are adjacent, so a row sees one contiguous range of keys.
        seen = [i for i, s in enumerate(spans) if s.start <= start and (s.end is None or start < s.end)]
        if seen:
            result.append(Segment(start - first_row, end - first_row, offsets[seen[0]], offsets[seen[-1] + 1]))
    return tuple(result)


@dataclass(frozen=True)
class CrossView:
    """The vision tokens that each row of a forward pass sees.

    One conversation, or several that see the same, are cut into segments, which need no mask. Others get ``mask``, bool
    [B, 1, L, tokens], and ``row_mask``, bool [B, L, 1], False for rows that see nothing (in ``mask`` they see all,
    since softmax needs a key).
    """

    segments: tuple[Segment, ...] = ()
    mask: Tensor | None = None
    row_mask: Tensor | None = None

    @classmethod
    def build(
        cls,
        spans: Sequence[Sequence[ImageSpan]],
        image_tokens: Sequence[Sequence[int]],
        first_rows: Sequence[int],
        length: int,
        device: torch.device | str = "cpu",
    ) -> "CrossView | None":
        """Return the view of ``length`` rows per conversation, conversation b starting at row ``first_rows[b]``.

        Return None if no row sees an image: cross-attention layers are skipped then.
        """
        cut = [
            segments(s, n, first, first + length) for s, n, first in zip(spans, image_tokens, first_rows, strict=True)
        ]
        if not any(cut):
            return None
        if all(parts == cut[0] for parts in cut) and all(tuple(n) == tuple(image_tokens[0]) for n in image_tokens):
            return cls(cut[0])  # one conversation, or several that see the same, as when captioning
        tokens = max(sum(counts) for counts in image_tokens)
        mask = torch.zeros(len(cut), 1, length, tokens, dtype=torch.bool)
        for row, parts in enumerate(cut):
            for part in parts:
                mask[row, 0, part.row_start : part.row_end, part.key_start : part.key_end] = True
        sees = mask.any(dim=-1)
        mask |= ~sees[..., None]
        return cls(mask=upload(mask, device), row_mask=upload(sees[:, 0, :, None], device))
