"""Images with their decoded canvas, so that each is decoded only once. Doesn't import torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mllama_cli.core.answerer import text_only
from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig, MllamaVisionConfig
from mllama_cli.core.conversation import ImagePart, MeasuredImage
from mllama_cli.core.errors import CheckpointError
from mllama_cli.processing.canvas import Canvas, draw_canvas, supported_aspect_ratios
from mllama_cli.processing.images import Admit, open_sized
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PreparedImage(MeasuredImage):
    """An image with the canvas that a model's vision tower reads: at most 4 MB, never the full decoded image.

    Equal to the ImagePart that it was made from. Can be pickled, so that worker processes can make it.

    Attributes:
        canvas: the resized image.
        config: the config of ``canvas``.
    """

    canvas: Canvas
    config: ImageProcessorConfig

    def without_file(self) -> "PreparedImage":
        """Return the same image, digest included, without the bytes of its file, which no model needs any more."""
        image = replace(self, data=b"")
        image.__dict__["digest"] = self.digest
        return image


def prepare_image(
    part: ImagePart,
    config: ImageProcessorConfig,
    admit: Admit | None = None,
    buffer: Callable[[int], memoryview] | None = None,
) -> PreparedImage:
    """Decode an image in this process, turn it upright and draw its canvas, unless it is already prepared so.

    ``buffer`` makes the memory for the canvas's pixels. ``decoding`` does this under limits of time and memory. Raises
    ImageError, and NotAdmittedError if ``admit`` refuses.
    """
    if isinstance(part, PreparedImage) and part.config == config:
        return part
    image = open_sized(part, admit)
    width, height = image.size
    canvas = draw_canvas(image.pixels, config, buffer)
    return PreparedImage(part.data, part.name, canvas=canvas, width=width, height=height, config=config)


def image_config_of(folder: Path) -> ImageProcessorConfig:
    """Return a checkpoint's image config. Raise UsageError if it is text-only, CheckpointError if it is damaged."""
    if MllamaConfig.from_dict(read_json(folder / "config.json")).vision_config is None:
        raise text_only()
    return read_image_config(folder)


def read_image_config(folder: Path) -> ImageProcessorConfig:
    """Read preprocessor_config.json, or the part of processor_config.json that transformers 5 saves instead.

    Raises CheckpointError if neither exists, if it is invalid, or if it does not fit the vision tower of config.json.
    """
    path = folder / "preprocessor_config.json"
    joint = folder / "processor_config.json"
    if is_file(path):
        data = read_json(path)
    elif is_file(joint) and isinstance(part := read_json(joint).get("image_processor"), dict):
        path, data = joint, part
    else:
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, which says how images are prepared",
            "Download the model again, or copy this file from the original model.",
        )
    image = ImageProcessorConfig.from_dict(data, str(path))
    if is_file(folder / "config.json"):
        _require_fit(image, MllamaConfig.from_dict(read_json(folder / "config.json")).vision_config, path)
    return image


def _require_fit(image: ImageProcessorConfig, tower: MllamaVisionConfig | None, path: Path) -> None:
    """Raise CheckpointError unless images are prepared as the vision tower reads them."""
    if tower is None:
        return
    if image.tile_size != tower.image_size:
        raise CheckpointError(
            f"{path} makes tiles of {image.tile_size} pixels, and config.json's vision tower reads {tower.image_size}",
            "Copy both files from the same model.",
        )
    ratios = supported_aspect_ratios(image.max_image_tiles)
    if ratios != tower.supported_aspect_ratios[: len(ratios)]:
        raise CheckpointError(
            f"{path} allows {image.max_image_tiles} tiles, whose canvases config.json's vision tower does not know "
            f"({tower.max_num_tiles} tiles)",
            "Copy both files from the same model.",
        )
