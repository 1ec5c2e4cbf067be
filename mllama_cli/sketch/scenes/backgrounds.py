"""Paper and light: backgrounds, the colours that show on them, and the finish of an image."""

import math
import random

from mllama_cli.sketch.scenes.palette import COLOURS, Rgb, difference, from_hsv, lab, sample_colour
from mllama_cli.sketch.scenes.scene import Background, Finish

PLAIN_AT_A_GLANCE = 26.0
"""A colour must differ from its background by at least this much; thin lines need more."""


def choose_background(rng: random.Random) -> Background:
    draw = rng.random()
    colour: str | None = None
    if draw < 0.42:
        rgb, colour = rng.choice(((255, 255, 255), (255, 255, 255), (255, 255, 255), (252, 252, 252))), "white"
    elif draw < 0.60:
        rgb = from_hsv(rng.uniform(30, 60), rng.uniform(0.02, 0.16), rng.uniform(0.9, 1))
    elif draw < 0.76:
        rgb = from_hsv(rng.uniform(0, 360), rng.uniform(0.05, 0.24), rng.uniform(0.88, 1))
    elif draw < 0.82:
        rgb = from_hsv(0, 0, rng.uniform(0.8, 0.93))
    elif draw < 0.90:
        rgb = from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.07, 0.25))
        if rng.random() < 0.4:  # not quite 0, which padding is: the image must not blend into it
            rgb, colour = (rng.randint(8, 20),) * 3, "black"
    else:
        colour = rng.choice([name for name in COLOURS if name not in ("white", "black")])
        rgb = sample_colour(rng, colour)
    kind, other, strength = "plain", None, 0.0
    if rng.random() < 0.3:
        kind = rng.choice(("gradient", "grain", "grain", "grid", "ruled", "paper", "paper"))
        strength = rng.uniform(0.3, 1)
        away = -1 if sum(rgb) > 330 else 1
        shift = rng.randint(8, 26) if kind in ("gradient", "paper") else rng.randint(16, 40)
        tint = (rng.randint(0, 12), rng.randint(0, 12), rng.randint(0, 12))
        other = _shifted(rgb, away, shift, tint)
    if kind == "gradient":
        colour = None
    frame = None
    if rng.random() < 0.06:
        frame = rng.choice(((0, 0, 0), (90, 90, 90), (200, 200, 200)))
    return Background(rgb, kind, colour, other, strength, frame)


def thin_is_seen(colour: Rgb, background: Rgb) -> bool:
    """Return whether thin lines of a colour still show their colour on this background."""
    different, lightness = difference(colour, background), lab(background)[0]
    return different > 45 and (abs(lab(colour)[0] - lightness) > 20 or (different > 75 and lightness > 85))


def _shifted(rgb: Rgb, away: int, shift: int, tint: Rgb) -> Rgb:
    red, green, blue = (min(255, max(0, c + away * (shift + t))) for c, t in zip(rgb, tint, strict=True))
    return red, green, blue


def allowed_colours(background: Rgb, rng: random.Random) -> dict[str, Rgb]:
    """Return one RGB value for each named colour that stands out on this background."""
    values = {name: sample_colour(rng, name) for name in COLOURS}
    vivid = math.hypot(*lab(background)[1:]) > 40
    least = 45 if vivid else PLAIN_AT_A_GLANCE
    return {name: rgb for name, rgb in values.items() if difference(rgb, background) >= least}


def choose_finish(rng: random.Random, pixels: int) -> Finish:
    blur = rng.uniform(0.3, 1.1) * max(1.0, pixels / 260) if rng.random() < 0.12 else 0.0
    noise = rng.uniform(2, 14) if rng.random() < 0.14 else 0.0
    jpeg = rng.randint(30, 90) if rng.random() < 0.14 else 0
    shade = rng.uniform(0.05, 0.3) if rng.random() < 0.08 else 0.0
    return Finish(rng.random() < 0.75, blur, noise, jpeg, shade)
