"""A picture to tiles, exactly as in training: choose a canvas, resize, pad, normalise, cut.

Equal bit for bit to transformers' MllamaImageProcessorPil, whose results equal Meta's own transform.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import CheckpointError
from mllama_cli.processing.canvas import Canvas, Size, draw_canvas
from mllama_cli.system.json_file import read_json


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
        return self.normalise(draw_canvas(image, self.config))

    def normalise(self, canvas: Canvas) -> ImageTiles:
        """Bytes to what the vision tower reads; the second half of ``__call__``, for canvases drawn elsewhere."""
        pixels = np.empty(canvas.pixels.shape, dtype=np.float32)
        for channel in range(3):
            pixels[:, channel] = self._values[channel][canvas.pixels[:, channel]]
        return ImageTiles(torch.from_numpy(pixels), canvas.aspect_ratio_id, canvas.size)


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
