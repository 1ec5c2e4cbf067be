"""Out-of-domain images: imitations of photos, noise and crowded pages, made by formulas.

The model should say that it does not know them. Variety makes up for the lack of photographs.
"""

import math
import random

import numpy as np
from PIL import Image, ImageFilter

from mllama_cli.sketch.scenes.render import add_noise, jpeg
from mllama_cli.sketch.scenes.textures import KINDS, Pixels, clouds


def out_of_domain_image(rng: random.Random) -> Image.Image:
    """Return one such image, of any aspect ratio and of 90 to 500 pixels."""
    while True:
        image = _any_picture(rng)
        if np.asarray(image.resize((48, 48)).convert("L")).std() > 12:  # else it might be taken for an empty page
            return image


def _any_picture(rng: random.Random) -> Image.Image:
    side = rng.randint(140, 280) if rng.random() < 0.9 else rng.randint(80, 150)
    aspect = rng.choice((1.0, 4 / 3, 3 / 2, 16 / 9, math.exp(rng.uniform(0, 1.2))))
    width, height = (round(side * aspect), side) if rng.random() < 0.65 else (side, round(side * aspect))
    generator = np.random.default_rng(rng.getrandbits(63))
    kinds = list(KINDS)
    if rng.random() < 0.3:  # one texture in front of another
        back, front = (KINDS[rng.choice(kinds)](rng, generator, width, height) for _ in range(2))
        mask = clouds(generator, width, height, 1, rng.uniform(1.2, 2.2))[:, :, :1]
        edge = rng.uniform(1, 30)
        mask = 1 / (1 + np.exp(-edge * (mask - rng.uniform(0.35, 0.65)) * 4))
        pixels = back * mask + front * (1 - mask)
    else:
        pixels = KINDS[rng.choice(kinds)](rng, generator, width, height)
    return _photographed(rng, pixels)


def _photographed(rng: random.Random, pixels: Pixels) -> Image.Image:
    """Apply light, contrast, colour cast, focus, grain and compression."""
    if rng.random() < 0.3:
        pixels = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
        if rng.random() < 0.15:
            pixels = pixels * np.array([1.0, 0.9, 0.72], dtype=np.float32)
    elif rng.random() < 0.4:
        pixels = pixels * np.array([rng.uniform(0.75, 1.1) for _ in range(3)], dtype=np.float32)
    pixels = np.clip((pixels - 0.5) * rng.uniform(0.7, 1.5) + rng.uniform(0.35, 0.62), 0, 1)
    if rng.random() < 0.4:
        pixels = pixels ** rng.uniform(0.6, 1.7)
    if rng.random() < 0.3:
        height, width = pixels.shape[:2]
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        pixels = pixels * (1 - rng.uniform(0.2, 0.6) * (x * x + y * y) / 2)[:, :, None]
    image = Image.fromarray((pixels * 255).astype(np.uint8))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.4, 1.6)))
    if rng.random() < 0.4:
        image = add_noise(image, rng.uniform(2, 14), rng.getrandbits(31))
    if rng.random() < 0.4:
        image = jpeg(image, rng.randint(30, 90))
    return image
