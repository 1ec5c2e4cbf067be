"""Shapes as points around the origin, for tools that have none of their own."""

import math
from itertools import pairwise


def corners(kind: str, size: float) -> list[tuple[float, float]]:
    """Return a polygon around the origin, y downwards."""
    half = size / 2
    if kind == "triangle":
        return [(0, -half), (half, half * 0.75), (-half, half * 0.75)]
    if kind == "square":
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if kind == "rectangle":
        return [(-half, -half / 2), (half, -half / 2), (half, half / 2), (-half, half / 2)]
    if kind == "diamond":
        return [(0, -half), (half * 0.8, 0), (0, half), (-half * 0.8, 0)]
    if kind == "star":
        turns = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        return [
            (math.cos(t) * half * (1, 0.42)[i % 2], math.sin(t) * half * (1, 0.42)[i % 2]) for i, t in enumerate(turns)
        ]
    if kind == "cross":
        a = size / 6
        plus = [(-a, -half), (a, -half), (a, -a), (half, -a), (half, a), (a, a)]
        return plus + [(-x, -y) for x, y in plus]
    if kind.startswith("arrow"):
        half_shaft, head = size * 0.09, size * 0.1
        right = [(-half, -half_shaft), (head, -half_shaft), (head, -size * 0.26), (half, 0)]
        points = right + [(x, -y) for x, y in reversed(right[:3])]
        return points if kind == "arrow-right" else [(y, -x) for x, y in points]
    raise ValueError(kind)


def smooth_path(kind: str, size: float) -> list[tuple[float, float]]:
    """Return a shape of any kind as points close to each other."""
    turns = [i / 40 * 2 * math.pi for i in range(40)]
    half = size / 2
    if kind in ("circle", "oval", "ring"):
        flat, wide = (0.6 if kind == "oval" else 1), (0.8 if kind == "ring" else 1)
        return [(math.cos(t) * half * wide, math.sin(t) * half * flat * wide) for t in turns]
    if kind == "heart":
        return [
            (
                half * math.sin(t) ** 3,
                -half / 16 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
            )
            for t in turns
        ]
    points = [(-half, 0.0), (half, 0.0)] if kind == "line" else corners(kind, size)
    closed = points if kind == "line" else [*points, points[0]]
    return [
        (a[0] + (b[0] - a[0]) * step / 8, a[1] + (b[1] - a[1]) * step / 8)
        for a, b in pairwise(closed)
        for step in range(8)
    ]
