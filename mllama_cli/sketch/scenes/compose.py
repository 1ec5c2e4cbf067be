"""Invent scenes: how many shapes, of which kinds, colours and sizes, on what background, with what finish."""

import math
import random
from dataclasses import replace

from mllama_cli.sketch.scenes.backgrounds import (
    PLAIN_AT_A_GLANCE,
    allowed_colours,
    choose_background,
    choose_finish,
    thin_is_seen,
)
from mllama_cli.sketch.scenes.layout import Box, detail_scale, place, place_in_row
from mllama_cli.sketch.scenes.palette import Rgb, difference, sample_colour
from mllama_cli.sketch.scenes.scene import COMPACT, SHAPES, Background, Scene, Shape

COUNTS = (3, 14, 18, 20, 16, 15, 14)
"""How often an image has 0, 1, ... 6 shapes, in percent."""

RATIOS = (1.0, 1.0, 1.0, 1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9, 5 / 4, 2.0)


def compose(
    rng: random.Random, count: int | None = None, aspect: float | None = None, *, contrast: bool = False
) -> Scene:
    """Return a scene of ``count`` shapes (random if None) that fit and stand out from their background.

    ``contrast`` asks for different shapes of plainly different sizes.
    """
    while True:
        width, height = _canvas(rng, aspect)
        number = rng.choices(range(7), COUNTS)[0] if count is None else count
        pixels = min(_pixels(rng, number), round(1400 / max(width, height)))
        background = choose_background(rng)
        kinds = _kinds(rng, number, background.rgb, COMPACT if contrast else SHAPES)
        if kinds is None:
            continue
        shapes = _arrange(rng, kinds, width, height, background, min(detail_scale(width, height), pixels), contrast)
        if shapes is None:
            continue
        seed = rng.getrandbits(31)
        if pixels >= 160 and background.frame is None and rng.random() < 0.04:
            background, shapes = _in_axes(rng, background, shapes, width, height)
        return Scene(width, height, pixels, background, shapes, None, choose_finish(rng, pixels), seed)


def invent_shape(rng: random.Random, kind: str, colour: str, rgb: Rgb, size: float, scale: float, style: str) -> Shape:
    """Return a shape of that size (its longer side), not placed yet. ``scale`` is layout.detail_scale of the image."""
    width = height = size
    angle, line, detail = 0.0, 0.0, rng.random()
    if kind in ("oval", "rectangle"):
        height = size / rng.uniform(1.55, 2.4)
        if rng.random() < 0.5:
            width, height = height, width
        if rng.random() < 0.15:
            angle = rng.uniform(-90, 90)
    elif kind == "diamond":
        width = size * rng.uniform(0.62, 0.95)
        angle = rng.uniform(-5, 5)
    elif kind == "triangle":
        height = size * rng.uniform(0.8, 1)
        angle = rng.choice((0, 0, 0, 0, 180, rng.uniform(-180, 180))) + rng.uniform(-8, 8)
    elif kind == "star":
        angle = rng.choice((0.0, rng.uniform(-20, 20)))
    elif kind == "cross":
        angle = rng.choice((0, 0, 45)) + rng.choice((0.0, rng.uniform(-10, 10)))
    elif kind == "arrow":
        height = size * rng.uniform(0.45, 0.75)
        angle = rng.randrange(4) * 90 + rng.choice((0.0, rng.uniform(-8, 8)))
    elif kind == "line":
        angle = rng.choice((0, 90, rng.uniform(-90, 90), rng.uniform(-90, 90)))
        line = max(2.6 / scale, size * rng.uniform(0.025, 0.07))
        return Shape(kind, colour, rgb, 0, 0, size, 0, angle, line, detail=detail)
    elif kind == "circle":
        height = size * rng.choice((1, 1, rng.uniform(0.93, 1)))
    elif kind in ("square", "heart"):
        angle = rng.choice((0.0, rng.uniform(-10, 10)))
    if kind == "ring":
        line = size * rng.uniform(0.16, 0.24)
    elif style == "outlined":
        thickest = 0.06 if kind in ("circle", "oval") else 0.09  # thicker would be a ring
        line = min(max(1.7 / scale, size * rng.uniform(0.02, 0.06)), size * thickest)
    return Shape(kind, colour, rgb, 0, 0, width, height, angle, line, detail=detail)


def _in_axes(
    rng: random.Random, background: Background, shapes: tuple[Shape, ...], width: float, height: float
) -> tuple[Background, tuple[Shape, ...]]:
    """Return the same scene as a plot: everything a little smaller, inside a frame."""
    margin = rng.uniform(0.07, 0.12)
    part = 1 - 2 * margin
    moved = tuple(
        replace(
            _shrunk(shape, part),
            x=margin * width + part * shape.x,
            y=margin * height + part * shape.y,
            line=shape.line * part,
            hatch=shape.hatch * part,
        )
        for shape in shapes
    )
    return replace(background, axes=margin), moved


def _canvas(rng: random.Random, aspect: float | None) -> tuple[float, float]:
    if aspect is None:
        draw = rng.random()
        if draw < 0.62:
            aspect = rng.choice(RATIOS)
        elif draw < 0.86:
            aspect = math.exp(rng.uniform(0, math.log(2.1)))
        else:
            aspect = rng.uniform(2.1, 4)
        if rng.random() < 0.35:
            aspect = 1 / aspect
    return (aspect, 1.0) if aspect >= 1 else (1.0, 1 / aspect)


def _pixels(rng: random.Random, number: int) -> int:
    """Return the pixels of the shorter side, mostly no more than the tiles hold: larger images are shrunk to them."""
    draw = rng.random()
    if draw < 0.12 and number <= 3:
        return rng.randint(64, 112)
    if draw < 0.28:
        return rng.randint(112, 220)
    if draw < 0.88:
        return rng.randint(220, 400)
    if draw < 0.98:
        return rng.randint(400, 640)
    return rng.randint(640, 1000)


def _kinds(
    rng: random.Random, number: int, background: Rgb, shapes: tuple[str, ...]
) -> list[tuple[str, str, Rgb]] | None:
    """Return (kind, colour, rgb) of each shape: all different, in groups, of one kind, of one colour, or random."""
    values = allowed_colours(background, rng)
    colours = list(values)
    if len(colours) < 4:
        return None
    mode = rng.choices(("distinct", "groups", "one kind", "one colour", "chance"), (30, 38, 10, 6, 16))[0]
    if shapes != SHAPES:
        mode = rng.choice(("distinct", "distinct", "chance"))
    pairs: list[tuple[str, str]]
    if mode == "distinct":
        few = rng.sample(colours, min(number, len(colours)))
        few += [rng.choice(colours) for _ in range(number - len(few))]
        pairs = list(zip(rng.sample(shapes, number), few, strict=True))
    elif mode == "groups":
        pairs = []
        while len(pairs) < number:
            pair = (rng.choice(shapes), rng.choice(colours))
            pairs += [pair] * min(rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6)), number - len(pairs))
    elif mode == "one kind":
        kind = rng.choice(shapes)
        pairs = [(kind, rng.choice(colours)) for _ in range(number)]
    elif mode == "one colour":
        colour = rng.choice(colours)
        pairs = [(rng.choice(shapes), colour) for _ in range(number)]
    else:
        few_kinds, few = rng.sample(shapes, 3), rng.sample(colours, 3)
        pairs = [(rng.choice(few_kinds), rng.choice(few)) for _ in range(number)]
    result = [(kind, colour, values[colour]) for kind, colour in pairs]
    if rng.random() < 0.15:  # each shape has its own shade
        for index, (kind, colour, _) in enumerate(result):
            rgb = sample_colour(rng, colour)
            if difference(rgb, background) >= PLAIN_AT_A_GLANCE:
                result[index] = (kind, colour, rgb)
    return result


def _arrange(
    rng: random.Random,
    kinds: list[tuple[str, str, Rgb]],
    width: float,
    height: float,
    background: Background,
    scale: float,
    contrast: bool,
) -> tuple[Shape, ...] | None:
    """Choose sizes, styles and positions. Sizes shrink until all fit; None if they would become too small to see."""
    smallest = 24 / scale
    room = math.sqrt(width * height / max(1, len(kinds)))
    largest = min(0.86, room * 0.75)
    if largest < smallest:
        return None
    style = rng.choices(("filled", "outlined", "mixed"), (66, 16, 18))[0]
    bordered = background.colour is not None and rng.random() < 0.15
    wobble = rng.choice((0, 0, 0, rng.uniform(0.01, 0.035)))
    hatched = rng.random() < 0.06
    alike = not contrast and rng.random() < 0.35
    ladder = [smallest * 1.3 * 1.6**step for step in range(len(kinds))]
    rng.shuffle(ladder)
    common = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
    shapes = []
    for step, (kind, colour, rgb) in enumerate(kinds):
        size = common if alike else math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        if contrast and ladder[step] <= largest * 1.1:
            size = ladder[step] * rng.uniform(0.97, 1.03)
        if kind in ("line", "arrow", "rectangle", "oval"):
            size = max(size, 1.35 * smallest)
        if kind in ("star", "ring", "cross"):
            size = max(size, 1.15 * smallest)
        own = rng.choice(("filled", "outlined")) if style == "mixed" else style
        if own == "outlined" and not thin_is_seen(rgb, background.rgb):
            own = "filled"
        if own == "outlined":
            size = max(size, 1.3 * smallest)
        shape = invent_shape(rng, kind, colour, rgb, size, scale, own)
        if bordered and shape.line == 0 and colour != "black":
            shape = replace(shape, border=(0, 0, 0) if sum(background.rgb) > 200 else (255, 255, 255))
        if hatched and shape.line == 0 and shape.size > 1.3 * smallest and thin_is_seen(rgb, background.rgb):
            shape = replace(
                shape, hatch=max(3.0 / scale, shape.size * rng.uniform(0.03, 0.08)), seed=rng.getrandbits(31)
            )
        if wobble:
            shape = replace(shape, wobble=wobble, seed=rng.getrandbits(31))
        shapes.append(shape)
    gap = rng.choice((0.02, 0.03, 0.05)) if rng.random() < 0.95 else -0.03
    for _ in range(8):
        sizes = [_extent(shape) for shape in shapes]
        row = rng.random() < (0.12 if max(width, height) < 2 else 0.5)
        boxes = place_in_row(rng, sizes, width, height) if row else place(rng, sizes, width, height, gap=gap)
        if boxes is not None:
            return tuple(replace(shape, x=box.x, y=box.y) for shape, box in zip(shapes, boxes, strict=True))
        shapes = [_shrunk(shape, 0.87) for shape in shapes]
        if any(shape.size < smallest for shape in shapes):
            return None
    return None


def _extent(shape: Shape) -> tuple[float, float]:
    """Return the width and height of the box around a rotated shape."""
    turn = math.radians(shape.angle)
    cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
    edge = shape.line + 2 * shape.wobble * shape.size
    if shape.kind in ("circle", "oval", "ring", "star"):  # their corners are round
        wide = math.hypot(shape.width * cos, shape.height * sin)
        high = math.hypot(shape.width * sin, shape.height * cos)
    else:
        wide, high = shape.width * cos + shape.height * sin, shape.width * sin + shape.height * cos
    return wide + edge, high + edge


def _shrunk(shape: Shape, factor: float) -> Shape:
    return replace(shape, width=shape.width * factor, height=shape.height * factor)


def random_box(
    rng: random.Random, width: float, height: float, others: list[Box], size: tuple[float, float]
) -> Box | None:
    """Return one more box, clear of the others."""
    for _ in range(40):
        x = rng.uniform(size[0] / 2 + 0.02, width - size[0] / 2 - 0.02)
        y = rng.uniform(size[1] / 2 + 0.02, height - size[1] / 2 - 0.02)
        box = Box(x, y, *size)
        if all(box.gap(other) >= 0.03 for other in others):
            return box
    return None
