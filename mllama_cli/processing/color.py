"""Convert any PIL mode to RGB: transparency on white, 16-bit and float samples scaled to 8 bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MIN_IS_WHITE = 0  # TIFF tag 262, PhotometricInterpretation
_NETPBM_MAX = 65535  # Pillow scales deep netpbm samples to this maximum


_BAND_PIXELS = 1_000_000
"""How much is converted at a time, as some modes take forty bytes a pixel meanwhile."""


def to_rgb(image: Image.Image, reduction: int = 1) -> Image.Image:
    """Return ``image`` in mode RGB; the same object if there is nothing to do.

    Equal to transformers' ``convert_to_rgb``, pixel for pixel, for 1, L, LA, P, PA, RGB, RGBA, RGBX, CMYK, YCbCr, HSV
    and I or F images with values in 0..255. Unlike there, 16-bit grey is scaled instead of clipped, which turns nearly
    all of it white, premultiplied alpha (La, RGBa) is composited, and the A of LAB is a colour axis, not alpha.

    Args:
        reduction: average squares of this many pixels, a power of 2, to one.
    """
    if is_plain_rgb(image) and reduction == 1:
        return image
    convert = _deep_to_rgb(image) if _is_deep(image) else _band_to_rgb
    width, height = image.size
    rows = max(_BAND_PIXELS // max(width, 1) // reduction, 1) * reduction
    if rows >= height:
        whole = convert(image)
        return whole if reduction == 1 else whole.reduce(reduction)
    result = Image.new("RGB", (-(-width // reduction), -(-height // reduction)))
    for top in range(0, height, rows):
        band = convert(image.crop((0, top, width, min(top + rows, height))))
        result.paste(band if reduction == 1 else band.reduce(reduction), (0, top // reduction))
    return result


def is_plain_rgb(image: Image.Image) -> bool:
    return image.mode == "RGB" and image.info.get("transparency") is None


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        return image.convert("RGB")
    if image.mode == "La":  # Pillow only goes from La to LA
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or image.info.get("transparency") is not None:
        rgba = _with_8_bit_key(image).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _with_8_bit_key(image: Image.Image) -> Image.Image:
    """Scale a 16-bit transparent colour to 8 bits, as Pillow does with the samples of 16-bit RGB only."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _deep_to_rgb(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the conversion of deep grey ``image``, or of bands of it, to RGB."""
    to_8_bits: Callable[[NDArray[Any]], NDArray[np.uint8]]
    if image.mode.startswith("I;16"):
        # Pillow inverts 1 and 8 bits only.
        flip = 255 if getattr(image, "tag_v2", {}).get(262) == _MIN_IS_WHITE else 0
        to_8_bits = lambda samples: (samples >> 8).astype(np.uint8) ^ np.uint8(flip)  # noqa: E731
    elif image.mode == "I" and image.format == "PPM":
        to_8_bits = lambda samples: (samples.clip(0, _NETPBM_MAX) >> 8).astype(np.uint8)  # noqa: E731
    else:
        extent = _range_of(image)
        to_8_bits = lambda samples: scale_to_8_bits(samples, extent)  # noqa: E731
    key = image.info.get("transparency")

    def convert(band: Image.Image) -> Image.Image:
        samples = np.asarray(band)
        grey = Image.fromarray(to_8_bits(samples))
        if isinstance(key, int):  # the file names a transparent value
            grey.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
        return _band_to_rgb(grey)

    return convert


def _range_of(image: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest finite sample."""
    rows = max(_BAND_PIXELS // max(image.width, 1), 1)
    extents = []
    for top in range(0, image.height, rows):
        extent = _finite_range(np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))))
        extents += [extent] if extent else []
    return (min(low for low, _ in extents), max(high for _, high in extents)) if extents else (0.0, 0.0)


def _finite_range(samples: NDArray[Any]) -> tuple[float, float] | None:
    finite = samples[np.isfinite(samples)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def scale_to_8_bits(samples: NDArray[Any], extent: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Return int32 or float32 samples [height, width] of unknown range as uint8.

    The range is the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all samples. Samples outside of
    these ranges (negative ones, elevations, ...) are stretched from minimum to maximum. NaN counts as the minimum.
    ``extent`` is the smallest and largest sample of the image of which ``samples`` are a part.

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
    low, high = extent or _finite_range(samples) or (0.0, 0.0)
    floats = np.nan_to_num(floats, nan=low, posinf=high, neginf=low)
    if low < 0 or high > 65535:
        return np.rint((floats - low) / max(high - low, 1e-30) * 255).astype(np.uint8)
    if high > 255:
        return np.floor(floats / 256).astype(np.uint8)
    if high <= 1 and samples.dtype.kind == "f":
        return np.rint(floats * 255).astype(np.uint8)
    return floats.astype(np.uint8)  # truncates, as Pillow does
