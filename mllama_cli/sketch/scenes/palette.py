"""The eleven named colours and the RGB values of each, with gaps between them so that no name is ambiguous."""

import colorsys
import math
import random
from dataclasses import dataclass
from functools import lru_cache

Rgb = tuple[int, int, int]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray", "white")


@dataclass(frozen=True)
class Region:
    """A box in HSV: hue in degrees (may pass 360), saturation and value from 0 to 1."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


REGIONS: dict[str, tuple[Region, ...]] = {
    "red": (Region((352, 366), (0.82, 1), (0.80, 1)),),
    "orange": (Region((22, 37), (0.82, 1), (0.92, 1)),),
    "yellow": (Region((50, 60), (0.62, 1), (0.92, 1)),),
    "green": (Region((92, 150), (0.50, 1), (0.38, 0.88)),),
    "blue": (Region((206, 242), (0.60, 1), (0.52, 1)), Region((202, 226), (0.45, 0.62), (0.85, 1))),
    "purple": (Region((266, 288), (0.45, 0.95), (0.45, 0.85)), Region((288, 301), (0.6, 1), (0.42, 0.66))),
    "pink": (Region((318, 344), (0.35, 0.85), (0.92, 1)), Region((340, 354), (0.24, 0.36), (0.97, 1))),
    "brown": (Region((14, 29), (0.50, 0.9), (0.33, 0.56)),),
    "black": (Region((0, 360), (0, 0.5), (0, 0.09)),),
    "gray": (Region((0, 360), (0, 0.04), (0.42, 0.68)),),
    "white": (Region((0, 360), (0, 0.02), (0.97, 1)),),
}

# What other programs call by these names: CSS, Tableau (matplotlib), Material, flat UI.
STOCK: dict[str, tuple[str, ...]] = {
    "red": ("ff0000", "d62728", "e53935", "dc143c", "e74c3c", "cc0000", "f44336", "ee2222"),
    "orange": ("ffa500", "ff7f0e", "fb8c00", "ff9800", "ff8c00", "e67e22"),
    "yellow": ("ffff00", "ffd700", "fdd835", "ffeb3b", "f1c40f", "ffe119"),
    "green": ("008000", "00ff00", "2ca02c", "4caf50", "43a047", "27ae60", "2ecc71", "228b22", "32cd32", "3cb44b"),
    "blue": ("0000ff", "1f77b4", "2196f3", "1e88e5", "3498db", "4169e1", "0000cd", "1565c0", "4363d8", "64b5f6"),
    "purple": ("800080", "9467bd", "9c27b0", "8e24aa", "673ab7", "6a0dad", "9b59b6", "911eb4", "8a2be2", "663399"),
    "pink": ("ffc0cb", "ff69b4", "e377c2", "f48fb1", "ff80ab", "ff1493", "f06292", "ffb6c1"),
    "brown": ("8b4513", "8c564b", "795548", "a0522d", "6d4c41", "a52a2a", "7b3f00", "9a6324"),
    "black": ("000000", "111111", "1a1a1a", "000000"),
    "gray": ("808080", "7f7f7f", "9e9e9e", "888888", "696969", "a9a9a9", "777777", "999999"),
    "white": ("ffffff", "ffffff", "fafafa"),
}


def parse_hex(code: str) -> Rgb:
    return int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16)


def from_hsv(hue: float, saturation: float, value: float) -> Rgb:
    """Return RGB bytes; hue in degrees."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def sample_colour(rng: random.Random, name: str) -> Rgb:
    """Return an RGB value with this name: half the time a common one, else anywhere in its regions."""
    if rng.random() < 0.5:
        red, green, blue = parse_hex(rng.choice(STOCK[name]))
        if rng.random() < 0.5:
            return red, green, blue
        return _nudge(rng, red), _nudge(rng, green), _nudge(rng, blue)
    region = rng.choice(REGIONS[name])
    return from_hsv(rng.uniform(*region.hue), rng.uniform(*region.saturation), rng.uniform(*region.value))


@lru_cache(maxsize=4096)
def lab(colour: Rgb) -> tuple[float, float, float]:
    """Return CIE L*a*b* of an sRGB colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    red, green, blue = linear
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
    )
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def difference(one: Rgb, other: Rgb) -> float:
    """Return how different two colours look (CIE76): 2 is just visible, 26 is obvious at a glance."""
    return math.dist(lab(one), lab(other))


def _nudge(rng: random.Random, channel: int) -> int:
    return min(255, max(0, channel + rng.randint(-6, 6)))
