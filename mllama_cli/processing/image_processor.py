"""A picture to tiles, exactly as in training: choose a canvas, resize, pad, normalise, cut.

Equal bit for bit to transformers' MllamaImageProcessorPil, whose results equal Meta's own transform.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import CheckpointError, ImageError
from mllama_cli.core.json_file import read_json
from mllama_cli.processing.color import to_rgb

Size = tuple[int, int]
"""(height, width), in pixels or in tiles."""


@dataclass(frozen=True)
class ImageTiles:
    """One picture for the vision tower.

    Attributes:
        pixel_values: [tiles, 3, tile side, tile side], float32, normalised; only the tiles that the picture fills.
        aspect_ratio_id: the canvas, as its place in ``supported_aspect_ratios``, from 1.
        size: (height, width) in pixels of the resized picture, without the padding.
    """

    pixel_values: torch.Tensor
    aspect_ratio_id: int
    size: Size

    @property
    def num_tiles(self) -> int:
        return self.pixel_values.shape[0]


class MllamaImageProcessor:
    """PIL images to ImageTiles.

    >>> tiles = MllamaImageProcessor(ImageProcessorConfig(tile_size=56))(Image.new("RGB", (300, 100)))[0]
    >>> tiles.pixel_values.shape, tiles.aspect_ratio_id, tiles.size
    (torch.Size([3, 3, 56, 56]), 3, (56, 168))
    """

    def __init__(self, config: ImageProcessorConfig) -> None:
        self.config = config
        self._values = _normalised_bytes(config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MllamaImageProcessor":
        """Read preprocessor_config.json, or the part of processor_config.json that transformers 5 saves instead.

        Raises CheckpointError if neither is there, or if it cannot be read.
        """
        path = Path(folder) / "preprocessor_config.json"
        joint = Path(folder) / "processor_config.json"
        if path.is_file():
            data = read_json(path)
        elif joint.is_file() and isinstance(part := read_json(joint).get("image_processor"), dict):
            path, data = joint, part
        else:
            raise CheckpointError(
                f"{folder} has no preprocessor_config.json, which says how pictures are prepared",
                "Download the model again, or copy this file from the original model.",
            )
        try:
            return cls(ImageProcessorConfig.from_dict(data))
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: {error}", "The file may be damaged or made for another model.") from error

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[ImageTiles]:
        """One ImageTiles for each image. Any mode will do; an EXIF orientation is not looked at (``open_image`` does).

        Raises ImageError for an image without pixels.
        """
        return [self._tiles(image) for image in ([images] if isinstance(images, Image.Image) else images)]

    def _tiles(self, image: Image.Image) -> ImageTiles:
        if not image.width or not image.height:
            raise ImageError(f"the image has no pixels ({image.width} x {image.height})", "Give one of 1 x 1 or more.")
        side = self.config.tile_size
        ratios = supported_aspect_ratios(self.config.max_image_tiles)
        rows, columns = choose_canvas((image.height, image.width), ratios, side)
        height, width = fit_to_canvas((image.height, image.width), (rows * side, columns * side), side)
        resized = to_rgb(image).resize((width, height), Image.Resampling.BILINEAR)
        canvas = np.zeros((rows * side, columns * side, 3), dtype=np.uint8)
        canvas[:height, :width] = np.asarray(resized)
        tiles = canvas.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)
        pixels = np.empty(tiles.shape, dtype=np.float32)
        for channel in range(3):
            pixels[:, channel] = self._values[channel][tiles[:, channel]]
        return ImageTiles(torch.from_numpy(pixels), ratios.index((rows, columns)) + 1, (height, width))


def supported_aspect_ratios(max_image_tiles: int) -> tuple[Size, ...]:
    """All canvases of at most that many tiles, as (tiles high, tiles wide), in the order of their ids.

    >>> supported_aspect_ratios(3)
    ((1, 1), (1, 2), (1, 3), (2, 1), (3, 1))
    """
    sides = range(1, max_image_tiles + 1)
    return tuple((high, wide) for high in sides for wide in sides if high * wide <= max_image_tiles)


def choose_canvas(image: Size, ratios: Sequence[Size], tile_size: int) -> Size:
    """The canvas, in tiles, for an image of that (height, width): the one that needs the least enlarging; if all are
    too small, the one that needs the least shrinking; of equals the smallest; then the first.

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
    """(height, width) in pixels to which an image is resized before it is padded to the canvas.

    It fills the canvas in one direction, if it is large enough for that, and keeps its shape but for rounding down. Its
    longer side becomes one tile at least.

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


def _normalised_bytes(config: ImageProcessorConfig) -> NDArray[np.float32]:
    """What each byte becomes in each channel, [3, 256]: (byte * rescale_factor - mean) / std.

    A table, as there are only 256 x 3 results. The product is rounded from float64 to float32 before the mean is
    subtracted; another order of rounding gives other last bits than transformers.
    """
    if len(config.image_mean) != 3 or len(config.image_std) != 3:
        raise ValueError("image_mean and image_std must have three numbers each")
    if not isinstance(config.tile_size, int) or config.tile_size < 1:
        raise ValueError(f"the tile size must be a positive integer, not {config.tile_size!r}")
    if not isinstance(config.max_image_tiles, int) or config.max_image_tiles < 1:
        raise ValueError(f"max_image_tiles must be a positive integer, not {config.max_image_tiles!r}")
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean = np.array(config.image_mean, dtype=np.float32)
    std = np.array(config.image_std, dtype=np.float32)
    if not std.all():
        raise ValueError("image_std must not be zero")
    return (scaled - mean[:, None]) / std[:, None]
