"""Decode the pages and frames of images that have several: TIFF, and animations in GIF, WebP, PNG and others."""

from collections.abc import Iterable, Iterator

from PIL import Image

from mllama_cli.core.conversation import ImagePart
from mllama_cli.processing.color import is_plain_rgb, to_rgb
from mllama_cli.processing.images import (
    UPRIGHT,
    Admit,
    NotAdmittedError,
    decoding_errors,
    identify,
    orientation_of,
    turned_upright,
)
from mllama_cli.processing.memory_budget import plan_decoding

_PAGED = ("TIFF", "MPO", "HEIF")
"""Pillow's names of formats that hold several pictures rather than a moving one."""


def frame_count(part: ImagePart) -> tuple[int, bool]:
    """Return how many pages or frames an image has, and whether it is an animation. Raise ImageError."""
    with decoding_errors(part):
        image = identify(part)
        # Counting reads all of an animation: plan first, which refuses what is too large.
        plan_decoding(image, part.data, part.name, converted=True, turned=False)
        count = int(getattr(image, "n_frames", 1))
        return max(count, 1), count > 1 and image.format not in _PAGED


def open_frames(part: ImagePart, numbers: Iterable[int], admit: Admit | None = None) -> Iterator[Image.Image]:
    """Yield pages or frames, by their numbers from 1, upright and in RGB. Each is valid until the next is asked for.

    Raise ImageError, NotAdmittedError if ``admit`` refuses.
    """
    with decoding_errors(part):
        image = identify(part)
        for number in numbers:
            image.seek(number - 1)
            turned = orientation_of(image) in UPRIGHT
            plan = plan_decoding(image, part.data, part.name, converted=not is_plain_rgb(image), turned=turned)
            if admit is not None and not admit(plan):
                raise NotAdmittedError
            image.load()
            yield turned_upright(to_rgb(image, plan.reduction), orientation_of(image))  # a TIFF may be upright only now
