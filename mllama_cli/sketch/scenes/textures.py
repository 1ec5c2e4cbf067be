"""Fourteen formulas for images that are not simple drawings."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mllama_cli.sketch.scenes.fonts import load_font
from mllama_cli.sketch.scenes.palette import from_hsv
from mllama_cli.sketch.scenes.printed_words import printed_word

Pixels = NDArray[np.floating[Any]]
"""[height, width, 3], from 0 to 1."""


def clouds(generator: np.random.Generator, width: int, height: int, channels: int, roughness: float) -> Pixels:
    """Return noise that falls off with frequency, as in nature: octaves enlarged and added."""
    total = np.zeros((height, width, channels), dtype=np.float32)
    weight, cells = 1.0, 2
    while cells < max(width, height):
        across = max(2, round(cells * width / max(width, height)) + 1)
        down = max(2, round(cells * height / max(width, height)) + 1)
        for channel in range(channels):
            grid = Image.fromarray(generator.random((down, across), dtype=np.float32))
            total[:, :, channel] += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        weight /= roughness
        cells *= 2
    low, high = total.min(), total.max()
    return (total - low) / max(1e-6, high - low)  # type: ignore[no-any-return]


def _palette(rng: random.Random, entries: int = 5) -> Pixels:
    """Return a few colours that go together, dark to light."""
    hue, spread, saturation = rng.uniform(0, 360), rng.choice((20, 60, 180)), rng.uniform(0.1, 0.9)
    colours = [
        from_hsv(
            hue + rng.uniform(-spread, spread), saturation * rng.uniform(0.4, 1), 0.08 + 0.9 * i / max(1, entries - 1)
        )
        for i in range(entries)
    ]
    return np.array(colours, dtype=np.float32) / 255


def _toned(values: Pixels, palette: Pixels) -> Pixels:
    """Map values from 0 to 1, [height, width], to a palette."""
    position = np.clip(values, 0, 0.999) * (len(palette) - 1)
    low = position.astype(np.int64)
    part = (position - low)[:, :, None]
    return palette[low] * (1 - part) + palette[low + 1] * part


def _cloudy(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    roughness = rng.uniform(1.15, 2.2)
    if rng.random() < 0.3:
        return clouds(generator, width, height, 3, roughness)
    return _toned(clouds(generator, width, height, 1, roughness)[:, :, 0], _palette(rng))


def _landscape(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """A sky and hills, each nearer one darker or greener."""
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    sky = _toned(ramp * 0.5 + 0.3 * clouds(generator, width, height, 1, 2)[:, :, 0] + 0.2, _palette(rng))
    base = rng.uniform(0.25, 0.7)
    for _ in range(rng.randint(1, 4)):
        profile = clouds(generator, width, 8, 1, rng.uniform(1.4, 2.4))[4, :, 0]
        line = (base + (profile - 0.5) * rng.uniform(0.1, 0.5)) * height
        below = np.arange(height)[:, None] > line[None, :]
        ground = _toned(clouds(generator, width, height, 1, rng.uniform(1.1, 1.7))[:, :, 0] * 0.7, _palette(rng))
        sky = np.where(below[:, :, None], ground, sky)
        base += rng.uniform(0.05, 0.25)
    return sky


def _cells(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Patches around random points, each shaded: stones, leaves, crowds, stained glass."""
    count = rng.randint(8, 160)
    small_w, small_h = max(8, width // 2), max(8, height // 2)
    points = generator.random((count, 2), dtype=np.float32) * (small_h, small_w)
    y, x = np.mgrid[0:small_h, 0:small_w].astype(np.float32)
    best = np.full((small_h, small_w), 1e9, dtype=np.float32)
    owner = np.zeros((small_h, small_w), dtype=np.int64)
    for index, (py, px) in enumerate(points):
        distance = (y - py) ** 2 + (x - px) ** 2
        nearer = distance < best
        best[nearer] = distance[nearer]
        owner[nearer] = index
    colours = _palette(rng, 8)[generator.integers(0, 8, count)] * generator.uniform(0.6, 1.2, (count, 1))
    shade = np.sqrt(best) / math.sqrt(small_w * small_h / count)
    pixels = colours[owner] * (1 - rng.uniform(0, 0.9) * shade)[:, :, None]
    return _enlarged(pixels, width, height) * (0.75 + 0.5 * clouds(generator, width, height, 1, 1.3) - 0.1)


def _lit_balls(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Shaded bodies with a highlight and a shadow on a textured ground: fruit, coins, faces out of focus."""
    pixels = _cloudy(rng, generator, width, height) * rng.uniform(0.4, 1)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = rng.uniform(0, 2 * math.pi)
    for _ in range(rng.choice((1, 1, 2, 3, 6, 14))):
        radius = rng.uniform(0.08, 0.5) * min(width, height)
        cx, cy, flat = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.6, 1.5)
        dx, dy = (x - cx) / radius, (y - cy) / (radius * flat)
        depth = np.sqrt(np.clip(1 - dx * dx - dy * dy, 0, 1))
        lit = np.clip(0.25 + 0.75 * (depth * 0.7 + 0.5 * (dx * math.cos(light) + dy * math.sin(light))), 0, 1)
        colour = np.array(from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.9), rng.uniform(0.4, 1)), np.float32) / 255
        body = lit[:, :, None] * colour * (0.85 + 0.3 * clouds(generator, width, height, 1, 1.4))
        body += (np.clip(lit - 0.9, 0, 1) * rng.uniform(0, 8))[:, :, None]
        mask = np.clip((1 - dx * dx - dy * dy) * rng.uniform(3, 20), 0, 1)[:, :, None]
        pixels = pixels * (1 - mask) + body * mask
    return pixels


def _clutter(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Many overlapping pieces."""
    image = Image.new("RGB", (width, height), from_hsv(rng.uniform(0, 360), rng.random() * 0.6, rng.random()))
    draw = ImageDraw.Draw(image, "RGBA")
    largest = rng.uniform(0.1, 0.6) * min(width, height)
    spread = rng.choice((40, 180))
    hue = rng.uniform(0, 360)
    for _ in range(rng.randint(40, 220)):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.15, 1) * largest
        fill = (*from_hsv(hue + rng.uniform(-spread, spread), rng.random(), rng.random()), rng.randint(60, 255))
        if rng.random() < 0.4:
            high = size * rng.uniform(0.2, 1)
            draw.ellipse((x - size / 2, y - high / 2, x + size / 2, y + high / 2), fill=fill)
        else:
            corners = [(x + rng.gauss(0, size / 2), y + rng.gauss(0, size / 2)) for _ in range(rng.randint(3, 6))]
            draw.polygon(corners, fill=fill)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 8)))
    return _pixels(image)


def _static(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Noise of one cell size, coloured or gray, even or of two values."""
    cell = rng.choice((1, 1, 2, 3, 5, 8, 16))
    shape = (max(2, height // cell), max(2, width // cell), rng.choice((1, 3)))
    values = generator.random(shape, dtype=np.float32)
    draw = rng.random()
    if draw < 0.3:
        values = (values < rng.uniform(0.15, 0.85)).astype(np.float32)
    elif draw < 0.6:
        values = np.clip(0.5 + rng.uniform(0.15, 0.5) * generator.standard_normal(shape, dtype=np.float32), 0, 1)
    if shape[2] == 1:
        values = values.repeat(3, axis=2)
    return _enlarged(
        values, width, height, Image.Resampling.NEAREST if rng.random() < 0.7 else Image.Resampling.BICUBIC
    )


def _pattern(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Waves, boards, bricks, weaves: something that repeats all over."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = rng.uniform(0, math.pi)
    u, v = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    bend = clouds(generator, width, height, 1, 1.8)[:, :, 0] * rng.choice((0, 10, 40, 120))
    period = rng.uniform(5, 40)
    a, b = np.sin(2 * math.pi * (u + bend) / period), np.sin(2 * math.pi * (v + bend) / (period * rng.uniform(0.5, 3)))
    values = rng.choice((a, a * b, a + b, np.sign(a * b), np.maximum(a, b), np.sign(a)))
    values = 0.5 + 0.35 * values / max(1e-3, float(np.abs(values).max()))
    values = values + rng.uniform(0, 0.5) * (clouds(generator, width, height, 1, 1.2)[:, :, 0] - 0.5)
    return _toned(np.clip(values, 0, 1), _palette(rng))


def _page(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """A page of small print, or several columns of it."""
    dark = rng.random() < 0.2
    image = Image.new("RGB", (width, height), (25, 25, 30) if dark else from_hsv(45, rng.uniform(0, 0.15), 0.97))
    draw = ImageDraw.Draw(image)
    size = rng.randint(7, max(9, height // 14))
    font, y = load_font("", size), rng.uniform(0, size)
    ink = (220, 220, 220) if dark else (rng.randint(0, 90),) * 3
    while y < height:
        x = rng.uniform(2, 0.1 * width)
        end = width * rng.uniform(0.6, 1.1)
        while x < end:
            word = printed_word(rng, 9)
            draw.text((x, y), word, ink, font)
            x += font.getlength(word) + size * 0.4
        y += size * rng.choice((1.25, 1.25, 1.25, 2.2))
    pixels = _pixels(image)
    if rng.random() < 0.5:
        pixels = pixels * (0.6 + 0.5 * clouds(generator, width, height, 1, 2.2))
    return pixels


def _strokes(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Grass, fur, rain, scribbles: hundreds of strokes."""
    image = Image.fromarray((np.clip(_cloudy(rng, generator, width, height), 0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    lean, length = rng.uniform(0, math.pi), rng.uniform(5, 60)
    palette = [tuple(int(c * 255) for c in colour) for colour in _palette(rng, 6)]
    for _ in range(rng.randint(150, 700)):
        x, y, turn = rng.uniform(0, width), rng.uniform(0, height), lean + rng.gauss(0, 0.4)
        reach = length * rng.uniform(0.5, 1.2)
        end = (x + math.cos(turn) * reach, y + math.sin(turn) * reach)
        draw.line((x, y, *end), fill=rng.choice(palette), width=rng.randint(1, 3))
    return _pixels(image)


def _scribble(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """A tangle of long curved lines."""
    image = Image.new("RGB", (width, height), rng.choice(((255, 255, 255), (250, 245, 230), (30, 30, 40))))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 4)):
        points = generator.random((rng.randint(40, 150), 2)) * (width, height)
        smooth = np.stack([np.convolve(points[:, axis], np.ones(3) / 3, "valid") for axis in range(2)], axis=1)
        ink = from_hsv(rng.uniform(0, 360), rng.random(), rng.random())
        draw.line([(float(x), float(y)) for x, y in smooth], fill=ink, width=rng.randint(1, 4), joint="curve")
    return _pixels(image)


def _lights(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Discs or points of light on a dark background: cities, stars, water."""
    pixels = _cloudy(rng, generator, width, height) * rng.uniform(0.05, 0.35)
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    largest = rng.choice((1.5, 3, 10, 24))
    for _ in range(rng.randint(25, 250)):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.3, 1) * largest
        fill = (*from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.7), 1), rng.randint(60, 255))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 4)))
    return _pixels(image)


def _silhouettes(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Irregular dark bodies against a light background, like distant animals and trees."""
    field = clouds(generator, width, height, 1, rng.uniform(1.5, 2.1))[:, :, 0]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    body = field - rng.uniform(0.3, 0.6) * (x * x + y * y) > rng.uniform(0.2, 0.45)
    light = np.ones((height, width, 3), dtype=np.float32)
    if rng.random() < 0.6:
        light = _toned(0.5 + 0.5 * np.broadcast_to((y + 1) / 2, (height, width)), _palette(rng))
    return np.where(body[:, :, None], np.float32(rng.uniform(0, 0.2)), light)


def _portrait(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Soft ovals in the colours of skin, hair and cloth on an out-of-focus background."""
    back = _clutter(rng, generator, width, height)
    image = Image.fromarray((np.clip(back, 0, 1) * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(12))
    draw = ImageDraw.Draw(image)
    skin = from_hsv(rng.uniform(12, 32), rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.95))
    x, y, size = rng.uniform(0.3, 0.7) * width, rng.uniform(0.35, 0.55) * height, rng.uniform(0.15, 0.4) * height
    hair, cloth = from_hsv(rng.uniform(0, 50), 0.5, rng.uniform(0.05, 0.6)), from_hsv(rng.uniform(0, 360), 0.6, 0.6)
    draw.ellipse((x - size * 1.6, y + size * 0.7, x + size * 1.6, y + size * 4), fill=cloth)
    draw.ellipse((x - size * 0.85, y - size * 1.2, x + size * 0.85, y + size * 0.6), fill=hair)
    draw.ellipse((x - size * 0.65, y - size * 0.9, x + size * 0.65, y + size), fill=skin)
    for side in (-1, 1):
        eye = x + side * size * 0.28
        draw.ellipse((eye - size * 0.1, y - size * 0.1, eye + size * 0.1, y + size * 0.02), fill=(40, 30, 30))
    draw.ellipse((x - size * 0.22, y + size * 0.45, x + size * 0.22, y + size * 0.58), fill=(150, 60, 60))
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(1, 5)))
    return _pixels(image) * (0.65 + 0.6 * clouds(generator, width, height, 1, 1.5))


def _interior(rng: random.Random, generator: np.random.Generator, width: int, height: int) -> Pixels:
    """Walls, windows, shelves and boxes in shaded planes: rooms, streets, machines."""
    image = Image.new("RGB", (width, height), from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.4), rng.uniform(0.3, 0.9)))
    draw = ImageDraw.Draw(image)
    vanish = rng.uniform(0, width), rng.uniform(0, height)
    for _ in range(rng.randint(12, 50)):
        x, y = rng.uniform(-0.1, 1) * width, rng.uniform(-0.1, 1) * height
        wide, high, pull = rng.uniform(0.03, 0.4) * width, rng.uniform(0.03, 0.4) * height, rng.uniform(0.02, 0.4)
        front = [(x, y), (x + wide, y), (x + wide, y + high), (x, y + high)]
        far = [(px + (vanish[0] - px) * pull, py + (vanish[1] - py) * pull) for px, py in front]
        hue, saturation, value = rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.2, 1)
        for side in range(4):
            quad = [front[side], front[(side + 1) % 4], far[(side + 1) % 4], far[side]]
            draw.polygon(quad, fill=from_hsv(hue, saturation, value * (0.5 + 0.12 * side)))
        draw.polygon(front, fill=from_hsv(hue, saturation, value))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 3)))
    return _pixels(image) * (0.6 + 0.6 * clouds(generator, width, height, 1, rng.uniform(1.3, 2.2)))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32) / 255


def _enlarged(pixels: Pixels, width: int, height: int, how: Image.Resampling = Image.Resampling.BILINEAR) -> Pixels:
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    return _pixels(image.resize((width, height), how))


KINDS: dict[str, Callable[[random.Random, np.random.Generator, int, int], Pixels]] = {
    "cloudy": _cloudy,
    "landscape": _landscape,
    "cells": _cells,
    "lit balls": _lit_balls,
    "clutter": _clutter,
    "static": _static,
    "pattern": _pattern,
    "page": _page,
    "strokes": _strokes,
    "scribble": _scribble,
    "lights": _lights,
    "silhouettes": _silhouettes,
    "portrait": _portrait,
    "interior": _interior,
}
