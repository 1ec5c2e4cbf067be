"""Layout: the nine zones of an image, and positions for shapes that do not crowd one another."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mllama_cli.sketch.scenes.scene import Shape

ZONES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Rows and columns are thirds of the image."""

MARGIN = 0.045
"""No answer depends on a position nearer to a border between thirds than this fraction of the image."""


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre and size."""

    x: float
    y: float
    width: float
    height: float

    def gap(self, other: "Box") -> float:
        """Return the gap between two boxes; negative if they overlap."""
        across = abs(self.x - other.x) - (self.width + other.width) / 2
        down = abs(self.y - other.y) - (self.height + other.height) / 2
        return max(across, down)


def third(position: float, extent: float) -> int | None:
    """Return the third that a coordinate is in: 0, 1 or 2, or None too near to a border."""
    part = position / extent
    for index, (low, high) in enumerate(((-1.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 2.0))):
        if low + MARGIN < part < high - MARGIN:
            return index
    return None


def zone_of(x: float, y: float, width: float, height: float) -> str | None:
    """Return the zone of a point in an image of that size, or None where it is ambiguous.

    >>> zone_of(0.1, 0.1, 1, 1), zone_of(1.5, 0.5, 3, 1), zone_of(0.34, 0.5, 1, 1)
    ('top left', 'middle', None)
    """
    column, row = third(x, width), third(y, height)
    return None if column is None or row is None else ZONES[row][column]


def detail_scale(width: float, height: float) -> float:
    """Return the pixels of a unit when the image fills four tiles of 112, at which drawings must be visible."""
    longer = max(width, height)
    return max(224 / longer, min(112.0, 448 / longer))


def place(
    rng: random.Random, sizes: Sequence[tuple[float, float]], width: float, height: float, *, gap: float = 0.03
) -> list[Box] | None:
    """Place boxes of these sizes in an image, at least ``gap`` apart; return None if they do not fit.

    With probability 0.6 each centre is well inside one of the nine zones, which is then unambiguous.
    """
    zoned = rng.random() < 0.6
    cells = [(row, column) for row in range(3) for column in range(3)]
    boxes: list[Box] = []
    for wide, high in sizes:
        for _ in range(30):
            if zoned:
                row, column = rng.choice(cells)
                x = (column + rng.uniform(0.2, 0.8)) / 3 * width
                y = (row + rng.uniform(0.2, 0.8)) / 3 * height
            else:
                x, y = rng.uniform(0, width), rng.uniform(0, height)
            x = min(max(x, wide / 2 + 0.02), width - wide / 2 - 0.02)
            y = min(max(y, high / 2 + 0.02), height - high / 2 - 0.02)
            box = Box(x, y, wide, high)
            if all(box.gap(other) >= gap for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def place_in_row(
    rng: random.Random, sizes: Sequence[tuple[float, float]], width: float, height: float
) -> list[Box] | None:
    """Place boxes in one row or column along the longer side, as people line things up."""
    along = width >= height
    extent, across = (width, height) if along else (height, width)
    lengths = [size[0] if along else size[1] for size in sizes]
    room = extent - sum(lengths)
    if room < 0.03 * (len(sizes) + 1):
        return None
    cuts = [rng.uniform(0.5, 1) for _ in range(len(sizes) + 1)]
    unit = room / sum(cuts)
    middle, position, boxes = across * rng.uniform(0.4, 0.6), 0.0, []
    for size, length, cut in zip(sizes, lengths, cuts, strict=False):
        position += cut * unit + length / 2
        thickness = size[1] if along else size[0]
        side = middle + rng.uniform(-0.03, 0.03)
        side = min(max(side, thickness / 2 + 0.02), across - thickness / 2 - 0.02)
        boxes.append(Box(position, side, *size) if along else Box(side, position, *size))
        position += length / 2
    rng.shuffle(boxes) if len(set(sizes)) == 1 else None
    return boxes


def box_of(shape: Shape) -> Box:
    """Return a box around a shape in any rotation."""
    if shape.angle % 180 == 0:
        return Box(shape.x, shape.y, shape.width, shape.height)
    side = max(shape.width, shape.height)
    return Box(shape.x, shape.y, side, side)
