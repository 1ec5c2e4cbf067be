"""Sixel: the pictures of DEC's terminals, which foot, mlterm and others draw.

The format: a palette, then bands of six rows; in a band, each colour draws its pixels as characters of six bits, the
top row lowest, a run of equal ones written !COUNT; ``$`` goes back to the band's start, ``-`` to the next band.
"""

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = 256
BAND = 6


def sixel(image: "Image") -> str:
    """The escape sequence that draws ``image`` (RGB) pixel by pixel, without a newline behind it."""
    from PIL import Image as Pillow

    reduced = image.convert("RGB").quantize(COLOURS, dither=Pillow.Dither.FLOYDSTEINBERG)
    palette = reduced.getpalette() or []
    pixels = np.asarray(reduced)
    width, height = image.size
    used = np.unique(pixels)
    parts = [f'\x1bP0;1q"1;1;{width};{height}']
    parts += [f"#{c};2;" + ";".join(str(round(v / 2.55)) for v in palette[3 * c : 3 * c + 3]) for c in used.tolist()]
    for top in range(0, height, BAND):
        band = pixels[top : top + BAND]
        weights = (1 << np.arange(len(band)))[:, None]
        drawn = [f"#{c}" + _runs(((band == c) * weights).sum(0).tolist()) for c in np.unique(band).tolist()]
        parts.append("$".join(drawn) + "-")
    return "".join(parts) + "\x1b\\"


def _runs(bits: list[int]) -> str:
    pieces = []
    for value, run in itertools.groupby(bits):
        count, character = len(list(run)), chr(63 + value)
        pieces.append(f"!{count}{character}" if count > 3 else character * count)
    return "".join(pieces)
