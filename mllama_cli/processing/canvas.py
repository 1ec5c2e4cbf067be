"""Choose an image's canvas of tiles, and resize the image to it.

Doesn't import torch, so that worker processes start fast and stay small.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import ImageError
from mllama_cli.processing.color import to_rgb

Size = tuple[int, int]
"""(height, width), in pixels or in tiles."""


@dataclass(frozen=True)
class Canvas:
    """A resized image, padded with black to its canvas.

    Attributes:
        pixels: uint8 [tiles, 3, tile side, tile side], tiles row by row.
        columns: tiles in a row.
        aspect_ratio_id: 1-based index of the canvas in ``supported_aspect_ratios``.
        size: (height, width) in pixels of the resized image.
    """

    pixels: NDArray[np.uint8]
    columns: int
    aspect_ratio_id: int
    size: Size

    @property
    def num_tiles(self) -> int:
        return len(self.pixels)

    def image(self) -> Image.Image:
        """Return the resized image, without the padding."""
        height, width = self.size
        side = self.pixels.shape[-1]
        tiles = self.pixels.reshape(-1, self.columns, 3, side, side).transpose(0, 3, 1, 4, 2)
        return Image.fromarray(tiles.reshape(-1, self.columns * side, 3)[:height, :width])


def draw_canvas(
    image: Image.Image, config: ImageProcessorConfig, buffer: Callable[[int], memoryview] | None = None
) -> Canvas:
    """Resize an image to its canvas, pad it and cut it into tiles. Raise ImageError for an image without pixels.

    ``buffer`` returns the memory for so many bytes of tiles.
    """
    if not image.width or not image.height:
        raise ImageError(f"the image has no pixels ({image.width} x {image.height})", "Give one of 1 x 1 or more.")
    side = config.tile_size
    ratios = supported_aspect_ratios(config.max_image_tiles)
    rows, columns = choose_canvas((image.height, image.width), ratios, side)
    height, width = fit_to_canvas((image.height, image.width), (rows * side, columns * side), side)
    resized = to_rgb(image)
    if resized.size != (width, height):
        resized = resized.resize((width, height), Image.Resampling.BILINEAR)
    shape = (rows, columns, 3, side, side)
    if buffer is None:
        tiles = np.zeros(shape, dtype=np.uint8)
    else:
        tiles = np.frombuffer(buffer(math.prod(shape)), np.uint8).reshape(shape)
        if (height, width) != (rows * side, columns * side):
            tiles[:] = 0
    for channel, band in enumerate(resized.split()):
        plane = np.asarray(band)
        for row, column in np.ndindex(rows, columns):
            part = plane[row * side : (row + 1) * side, column * side : (column + 1) * side]
            tiles[row, column, channel, : part.shape[0], : part.shape[1]] = part
    return Canvas(tiles.reshape(-1, 3, side, side), columns, ratios.index((rows, columns)) + 1, (height, width))


def supported_aspect_ratios(max_image_tiles: int) -> tuple[Size, ...]:
    """Return all canvases of at most that many tiles, as (tiles high, tiles wide), in the order of their ids.

    >>> supported_aspect_ratios(3)
    ((1, 1), (1, 2), (1, 3), (2, 1), (3, 1))
    """
    sides = range(1, max_image_tiles + 1)
    return tuple((high, wide) for high in sides for wide in sides if high * wide <= max_image_tiles)


def choose_canvas(image: Size, ratios: Sequence[Size], tile_size: int) -> Size:
    """Return the canvas, in tiles, for an image of this (height, width).

    It is the one that enlarges the image least or, if all are too small, shrinks it least. Ties go to the smallest
    canvas, then to the first.

    >>> ratios = supported_aspect_ratios(4)
    >>> choose_canvas((500, 1000), ratios, 560)  # 1 x 2 tiles enlarge it by 1.12
    (1, 2)
    >>> choose_canvas((400, 500), ratios, 560)  # four canvases enlarge it by 1.12 too; one tile is the smallest
    (1, 1)
    >>> choose_canvas((3000, 4000), ratios, 560)  # too large for any; 2 x 2 shrinks it least, to 0.28
    (2, 2)
    """
    height, width = image
    scales = [min(high * tile_size / height, wide * tile_size / width) for high, wide in ratios]
    enlarging = [scale for scale in scales if scale >= 1]
    best = min(enlarging) if enlarging else max(scales)
    return min((r for r, scale in zip(ratios, scales, strict=True) if scale == best), key=lambda r: r[0] * r[1])


def fit_to_canvas(image: Size, canvas: Size, tile_size: int) -> Size:
    """Return the (height, width) in pixels to which an image is resized before it is padded to the canvas.

    The image is shrunk to fit the canvas, or enlarged until its longer side is one tile. It keeps its aspect ratio up
    to rounding down.

    >>> fit_to_canvas((500, 1000), (560, 1120), 560)  # room in the canvas is not filled
    (500, 1000)
    >>> fit_to_canvas((100, 200), (560, 560), 560)  # enlarged to one tile
    (280, 560)
    >>> fit_to_canvas((3000, 4000), (1120, 1120), 560)
    (840, 1120)
    >>> fit_to_canvas((1, 4000), (560, 2240), 560)  # never less than one pixel
    (1, 2240)
    """
    height, width = image
    target_height = min(max(height, tile_size), canvas[0])
    target_width = min(max(width, tile_size), canvas[1])
    scale_height, scale_width = target_height / height, target_width / width
    if scale_width < scale_height:
        return min(math.floor(height * scale_width) or 1, target_height), target_width
    return target_height, min(math.floor(width * scale_height) or 1, target_width)


def largest_on_canvas(image: tuple[float, float], config: ImageProcessorConfig) -> float:
    """Return the scale at which a page of this (height, width) is as large as any canvas allows.

    >>> largest_on_canvas((840, 600), ImageProcessorConfig())  # 2 x 2 tiles: 1120 pixels high
    1.3333333333333333
    """
    height, width = image
    side = config.tile_size
    return max(
        min(high * side / height, wide * side / width) for high, wide in supported_aspect_ratios(config.max_image_tiles)
    )


def fitted(image: Image.Image, config: ImageProcessorConfig) -> Image.Image:
    """Return an RGB image no larger than its canvas: what ``draw_canvas`` makes of it stays the same."""
    side = config.tile_size
    rows, columns = choose_canvas((image.height, image.width), supported_aspect_ratios(config.max_image_tiles), side)
    height, width = fit_to_canvas((image.height, image.width), (rows * side, columns * side), side)
    if width >= image.width and height >= image.height:
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)
