"""Images with printed text, alone or next to a few shapes."""

import math
import random
from dataclasses import replace

from mllama_cli.sketch.scenes.backgrounds import allowed_colours
from mllama_cli.sketch.scenes.compose import compose
from mllama_cli.sketch.scenes.fonts import find_fonts, load_font
from mllama_cli.sketch.scenes.layout import Box, box_of, detail_scale
from mllama_cli.sketch.scenes.palette import difference, lab
from mllama_cli.sketch.scenes.printed_words import printed_text
from mllama_cli.sketch.scenes.scene import Lettering, Scene

MIN_LINE_HEIGHT = 11.0
"""Smallest legible height of a line, in pixels after shrinking to the tiles."""


def compose_card(rng: random.Random, fonts_dir: str | None = None, shapes: int | None = None) -> Scene:
    """Compose an image with text; half of them also have 1 to 3 shapes, unless ``shapes`` says how many."""
    while True:
        number = rng.choice((0, 0, 0, 0, 1, 1, 2, 3)) if shapes is None else shapes
        scene = compose(rng, number, _aspect(rng))
        background = replace(scene.background, axes=0.0)
        scene = replace(scene, pixels=max(scene.pixels, 72), background=background)
        lettering = _lettering(rng, scene, fonts_dir)
        if lettering is not None:
            return replace(scene, lettering=lettering)


def _aspect(rng: random.Random) -> float | None:
    """Draw an aspect ratio: cards and signs are mostly wide."""
    return None if rng.random() < 0.5 else math.exp(rng.uniform(math.log(0.8), math.log(3.6)))


def _lettering(rng: random.Random, scene: Scene, fonts_dir: str | None) -> Lettering | None:
    text = printed_text(rng)
    if " " in text and rng.random() < 0.6:
        text = text.replace(" ", "\n")
    fonts = find_fonts(fonts_dir)
    path = rng.choice(fonts)
    if path.endswith(("Italic.ttf", "Oblique.ttf")) and rng.random() < 0.7:
        path = rng.choice(fonts)
    colours = allowed_colours(scene.background.rgb, rng)
    background = scene.background.rgb
    dark = lab(background)[0]
    colours = {n: rgb for n, rgb in colours.items() if abs(lab(rgb)[0] - dark) > 24 or difference(rgb, background) > 70}
    if not colours:
        return None
    favourite = "black" if "black" in colours else "white"
    colour = favourite if favourite in colours and rng.random() < 0.5 else rng.choice(list(colours))
    wide, high = measure(text, path)
    scale = min(detail_scale(scene.width, scene.height), scene.pixels)
    others = [box_of(shape) for shape in scene.shapes]
    smallest = MIN_LINE_HEIGHT * 1.35 / scale
    for attempt in range(12):
        part = rng.uniform(0.3, 0.94) if attempt < 6 else rng.uniform(0.2, 0.5)
        size = min(scene.width * part / wide, scene.height * rng.uniform(0.2, 0.8) / high)
        per_character = size * wide / max(len(line) for line in text.split("\n"))
        pale = abs(lab(colours[colour])[0] - dark) <= 24  # as yellow on white: large letters only
        if size < smallest * (2.2 if pale else 1) or per_character * scale < 6.5:
            continue
        angle = rng.uniform(-7, 7) if rng.random() < 0.15 and size * wide < 0.8 * scene.width else 0.0
        slope = math.sin(math.radians(abs(angle)))
        edge = rng.uniform(0.03, 0.08)
        box_width, box_height = wide * size + edge, high * size + slope * wide * size + edge
        if box_width > scene.width or box_height > scene.height:
            continue
        central = rng.random() < 0.4 and not others
        x = scene.width / 2 if central else rng.uniform(box_width / 2, scene.width - box_width / 2)
        y = scene.height / 2 if central else rng.uniform(box_height / 2, scene.height - box_height / 2)
        box = Box(x, y, box_width, box_height)
        if all(box.gap(other) > 0.01 for other in others):
            return Lettering(text, colour, colours[colour], x, y, size * wide, size, path, angle)
    return None


def measure(text: str, path: str) -> tuple[float, float]:
    """Return the width and height of a text in units of its font size."""
    font = load_font(path, 64)
    lines = text.split("\n")
    widest = max(font.getlength(line) for line in lines) / 64
    return float(widest), 1.15 * len(lines)
