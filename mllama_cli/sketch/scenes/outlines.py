"""Shapes as closed polygons in a box from -1/2 to 1/2, and the unsteady hand that draws them."""

import math
import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mllama_cli.sketch.scenes.scene import Shape

Points = NDArray[np.float64]

ROUND = 48
"""Vertices of a circle's polygon."""


def outline(shape: Shape) -> Points:
    """Return the shape's polygon in scene units, centred at its position. Lines and rings: their centre line."""
    points = OUTLINES[shape.kind](shape.detail)
    if shape.wobble:
        points = _unsteady(points, shape)
    points = points * (shape.width, shape.height)
    if shape.angle:
        turn = math.radians(shape.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        points = points @ np.array([[cos, sin], [-sin, cos]])
    placed: Points = points + np.array((shape.x, shape.y))
    return placed


def _circle(detail: float) -> Points:
    angles = np.linspace(0, 2 * math.pi, ROUND, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2


def _box(detail: float) -> Points:
    return np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])


def _triangle(detail: float) -> Points:
    apex = -0.5 if detail < 0.08 else 0.5 if detail > 0.92 else (detail - 0.5) * 0.5  # right-angled ones too
    return np.array([(apex, -0.5), (0.5, 0.5), (-0.5, 0.5)])


def _diamond(detail: float) -> Points:
    return np.array([(0, -0.5), (0.5, 0), (0, 0.5), (-0.5, 0)])


def _star(detail: float) -> Points:
    inner = 0.19 + 0.07 * detail
    angles = np.arange(10) * math.pi / 5 - math.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 0.5, inner)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def _heart(detail: float) -> Points:
    t = np.linspace(0, 2 * math.pi, ROUND, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 32, -(y + 2.5) / 29], axis=1)


def _cross(detail: float) -> Points:
    arm, end = 0.05 if detail < 0.12 else 0.10 + 0.09 * detail, 0.5
    quarter = [(-arm, -end), (arm, -end), (arm, -arm)]
    points = []
    for turn in range(4):
        cos, sin = (1, 0, -1, 0)[turn], (0, 1, 0, -1)[turn]
        points += [(x * cos - y * sin, x * sin + y * cos) for x, y in quarter]
    return np.array(points)


def _arrow(detail: float) -> Points:
    """Return an arrow that points right. The head takes 35 to 50% of the length, or less on a thin shaft."""
    head, shaft = 0.5 - (0.35 + 0.15 * detail), 0.12 + 0.10 * detail
    if detail > 0.8:
        head, shaft = 0.5 - detail * 0.32, 0.06
    half = [(-0.5, -shaft), (head, -shaft), (head, -0.5), (0.5, 0.0)]
    return np.array([*half, *((x, -y) for x, y in reversed(half[:-1]))])


def _line(detail: float) -> Points:
    return np.array([(-0.5, 0.0), (0.5, 0.0)])


OUTLINES: dict[str, Callable[[float], Points]] = {
    "circle": _circle,
    "oval": _circle,
    "square": _box,
    "rectangle": _box,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _circle,
    "arrow": _arrow,
    "line": _line,
}


def _unsteady(points: Points, shape: Shape) -> Points:
    """Bend long edges a little and shift corners."""
    rng = random.Random(shape.seed)
    steps = 1 if len(points) == ROUND else 6
    closed = np.concatenate([points, points[:1]]) if shape.kind != "line" else points
    fractions = np.linspace(0, 1, steps, endpoint=False)[:, None]
    path = np.concatenate([a + (b - a) * fractions for a, b in pairwise(closed)])
    if shape.kind == "line":
        path = np.concatenate([path, points[-1:]])
    along = np.linspace(0, 2 * math.pi, len(path), endpoint=False)
    for axis in range(2):
        for waves in (2, 3, 5):
            amount = shape.wobble * rng.uniform(0.2, 1) / waves
            path[:, axis] += amount * np.sin(waves * along + rng.uniform(0, 2 * math.pi))
    return path
