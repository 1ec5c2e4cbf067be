"""Images with their decoded canvas, so that each is decoded only once. Doesn't import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import CheckpointError, UsageError
from mllama_cli.processing.canvas import Canvas, draw_canvas
from mllama_cli.processing.images import open_sized
from mllama_cli.system.json_file import read_json


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PreparedImage(ImagePart):
    """An image with the canvas that a model's vision tower reads: at most 4 MB, never the full decoded image.

    Equal to the ImagePart that it was made from. Can be pickled, so that worker processes can make it.

    Attributes:
        canvas: the resized image.
        width: in pixels, of the original image turned upright; likewise ``height``.
        config: the config of ``canvas``.
    """

    canvas: Canvas
    width: int
    height: int
    config: ImageProcessorConfig


def prepare_image(
    part: ImagePart, config: ImageProcessorConfig, admit: Callable[[int], None] | None = None
) -> PreparedImage:
    """Decode an image, turn it upright and draw its canvas, unless it is already prepared for ``config``.

    ``admit`` is that of ``open_sized``.

    Raises ImageError.
    """
    if isinstance(part, PreparedImage) and part.config == config:
        return part
    image = open_sized(part, admit)
    width, height = image.size
    canvas = draw_canvas(image.pixels, config)
    return PreparedImage(part.data, part.name, canvas=canvas, width=width, height=height, config=config)


def text_only() -> UsageError:
    """Return the error for images given to a model without a vision tower."""
    return UsageError("This model is text-only: it cannot see images", "Use a Llama 3.2 Vision checkpoint.")


def image_config_of(folder: Path) -> ImageProcessorConfig:
    """Return a checkpoint's image config. Raise UsageError if it is text-only, CheckpointError if it is damaged."""
    if MllamaConfig.from_dict(read_json(folder / "config.json")).vision_config is None:
        raise text_only()
    return read_image_config(folder)


def read_image_config(folder: Path) -> ImageProcessorConfig:
    """Read preprocessor_config.json, or the part of processor_config.json that transformers 5 saves instead.

    Raises CheckpointError if neither exists, or if it is invalid.
    """
    path = folder / "preprocessor_config.json"
    joint = folder / "processor_config.json"
    if path.is_file():
        data = read_json(path)
    elif joint.is_file() and isinstance(part := read_json(joint).get("image_processor"), dict):
        path, data = joint, part
    else:
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json, which says how images are prepared",
            "Download the model again, or copy this file from the original model.",
        )
    try:
        return ImageProcessorConfig.from_dict(data)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}", "The file may be damaged or made for another model.") from error
