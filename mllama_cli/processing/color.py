"""Convert any PIL mode to RGB: transparency on white, 16-bit and float samples scaled to 8 bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MIN_IS_WHITE = 0  # TIFF tag 262, PhotometricInterpretation
_NETPBM_MAX = 65535  # Pillow scales deep netpbm samples to this maximum


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` in mode RGB; the same object if there is nothing to do.

    Equal to transformers' ``convert_to_rgb``, pixel for pixel, for 1, L, LA, P, PA, RGB, RGBA, RGBX, CMYK, YCbCr, HSV
    and I or F images with values in 0..255. Unlike there, 16-bit grey is scaled instead of clipped, which turns nearly
    all of it white, premultiplied alpha (La, RGBa) is composited, and the A of LAB is a colour axis, not alpha.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _deep_to_8_bits(image)
    if image.mode == "LAB":
        return image.convert("RGB")
    if image.mode == "La":  # Pillow only goes from La to LA
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or image.info.get("transparency") is not None:
        rgba = _with_8_bit_key(image).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_8_bit_key(image: Image.Image) -> Image.Image:
    """Scale a 16-bit transparent colour to 8 bits, as Pillow does with the samples of 16-bit RGB only."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _deep_to_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of deep samples as L, or as LA if the file names a transparent value."""
    samples = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (samples >> 8).astype(np.uint8)
        if getattr(image, "tag_v2", {}).get(262) == _MIN_IS_WHITE:  # Pillow inverts 1 and 8 bits only
            grey = 255 - grey
    elif image.mode == "I" and image.format == "PPM":
        grey = (samples.clip(0, _NETPBM_MAX) >> 8).astype(np.uint8)
    else:
        grey = scale_to_8_bits(samples)
    result = Image.fromarray(grey)
    key = image.info.get("transparency")
    if isinstance(key, int):
        result.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
    return result


def scale_to_8_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """Return int32 or float32 samples [height, width] of unknown range as uint8.

    The range is the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all samples. Samples outside of
    these ranges (negative ones, elevations, ...) are stretched from minimum to maximum. NaN counts as the minimum.

    >>> scale_to_8_bits(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).tolist()
    [[0, 128, 255]]
    >>> scale_to_8_bits(np.array([[0, 17, 255]], dtype=np.int32)).tolist()
    [[0, 17, 255]]
    >>> scale_to_8_bits(np.array([[0, 256, 65535]], dtype=np.int32)).tolist()
    [[0, 1, 255]]
    >>> scale_to_8_bits(np.array([[-100, 0, 100]], dtype=np.int32)).tolist()
    [[0, 128, 255]]
    """
    floats = samples.astype(np.float64)
    finite = floats[np.isfinite(floats)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    floats = np.nan_to_num(floats, nan=low, posinf=high, neginf=low)
    if low < 0 or high > 65535:
        return np.rint((floats - low) / max(high - low, 1e-30) * 255).astype(np.uint8)
    if high > 255:
        return np.floor(floats / 256).astype(np.uint8)
    if high <= 1 and samples.dtype.kind == "f":
        return np.rint(floats * 255).astype(np.uint8)
    return floats.astype(np.uint8)  # truncates, as Pillow does
