"""Convert images to tiles, exactly as in training: choose a canvas, resize, pad, normalise, cut.

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
from mllama_cli.kernels.ops import upload
from mllama_cli.processing.canvas import Canvas, Size, draw_canvas
from mllama_cli.processing.prepared import read_image_config


@dataclass(frozen=True)
class ImageTiles:
    """One image for the vision tower.

    Attributes:
        pixels: [tiles, 3, tile side, tile side] without padding tiles: bytes, or float32 if ``values`` is None.
        aspect_ratio_id: 1-based index of the canvas in ``supported_aspect_ratios``.
        size: (height, width) in pixels of the resized image, without the padding.
        values: what each byte of each channel is normalised to, float32 [3, 256].
    """

    pixels: torch.Tensor
    aspect_ratio_id: int
    size: Size
    values: torch.Tensor | None = None

    @property
    def num_tiles(self) -> int:
        return self.pixels.shape[0]

    @property
    def pixel_values(self) -> torch.Tensor:
        """Normalised pixels, float32, in host memory."""
        if self.values is None:
            return self.pixels
        pixels = np.empty(self.pixels.shape, dtype=np.float32)
        for tile, into in zip(self.pixels.numpy(), pixels, strict=True):
            for values, plane, out in zip(self.values.numpy(), tile, into, strict=True):
                np.take(values, plane, out=out, mode="clip")  # twice as fast as the default, which buffers
        return torch.from_numpy(pixels)

    def pixel_values_on(self, device: torch.device) -> torch.Tensor:
        """Return ``pixel_values`` on a device, without waiting for its work.

        A GPU gets the bytes, a quarter of their size, and looks them up.
        """
        if self.values is None or device.type == "cpu":
            return self.pixel_values
        return look_up(upload(self.pixels, device), upload(self.values, device))


def look_up(pixels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return what bytes [tiles, 3, T, T] are normalised to by a table [3, 256], on the device of both.

    >>> look_up(torch.tensor([[[[0, 255]]] * 3]).byte(), torch.arange(768.0).view(3, 256))[0, :, 0].tolist()
    [[0.0, 255.0], [256.0, 511.0], [512.0, 767.0]]
    """
    # Few operations: each takes the host up to 50 us to launch, while the device waits.
    rows = torch.arange(0, values.numel(), values.shape[1], dtype=torch.int32, device=values.device)[:, None, None]
    return values.flatten().index_select(0, (rows + pixels).flatten()).view(pixels.shape)


class MllamaImageProcessor:
    """Convert PIL images to ImageTiles.

    >>> tiles = MllamaImageProcessor(ImageProcessorConfig(tile_size=56))(Image.new("RGB", (300, 100)))[0]
    >>> tiles.pixel_values.shape, tiles.aspect_ratio_id, tiles.size
    (torch.Size([3, 3, 56, 56]), 3, (56, 168))
    """

    def __init__(self, config: ImageProcessorConfig) -> None:
        self.config = config
        self._values = torch.from_numpy(_normalised_bytes(config))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MllamaImageProcessor":
        """Return the processor of a checkpoint folder. Raise CheckpointError as ``read_image_config`` does."""
        return cls(read_image_config(Path(folder)))

    def __call__(self, images: Image.Image | Sequence[Image.Image]) -> list[ImageTiles]:
        """Return one ImageTiles for each image, of any mode. EXIF is ignored: ``open_image`` turns images upright.

        Raises ImageError for an image without pixels.
        """
        images = [images] if isinstance(images, Image.Image) else images
        return [self.normalise(draw_canvas(image, self.config)) for image in images]

    def normalise(self, canvas: Canvas) -> ImageTiles:
        """Return the vision tower's input for a canvas: the second half of ``__call__``."""
        return ImageTiles(torch.from_numpy(canvas.pixels), canvas.aspect_ratio_id, canvas.size, self._values)


def _normalised_bytes(config: ImageProcessorConfig) -> NDArray[np.float32]:
    """Return the table of (byte * rescale_factor - mean) / std for each channel and byte, [3, 256].

    The product is rounded from float64 to float32 before the mean is subtracted, as in transformers, so that results
    are equal to the last bit.
    """
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean = np.array(config.image_mean, dtype=np.float32)
    std = np.array(config.image_std, dtype=np.float32)
    return (scaled - mean[:, None]) / std[:, None]
