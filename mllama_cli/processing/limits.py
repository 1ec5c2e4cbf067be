"""Every limit on an image, document or video: the bytes of its file, its pixels, the memory and time to decode it."""

from dataclasses import dataclass

from mllama_cli.core.errors import ImageError, UsageError

MAX_PICTURE_BYTES = 900_000_000
"""The most that one picture may take while it is decoded, converted and turned."""
LARGE_PICTURE_BYTES = 300_000_000
"""Pictures that take more memory than this are decoded one at a time."""
WORKER_BYTES = MAX_PICTURE_BYTES + 400_000_000
"""What a decoding process may allocate, should a file deceive the estimate of what its decoder takes."""

DOCUMENT_BYTES = MAX_PICTURE_BYTES + 100_000_000
SMALL_DOCUMENT_BYTES = LARGE_PICTURE_BYTES + 200_000_000
"""The same for a document or video, whose needs are not known beforehand; those that need more come one at a time."""

QUICK_PICTURE_BYTES = 250_000_000
"""A JPEG or PNG that takes no more memory than this, some 25 million pixels, need not be decoded in a worker."""
QUICK_PICTURE_PASSES = 12
"""The same for the scans of a progressive JPEG: encoders make about ten."""

MAX_PICTURE_SECONDS = 60.0
"""The time for reading and decoding one picture."""

MAX_PIXELS = 178_956_970
"""The largest width x height; also Pillow's own limit, which some of its decoders apply themselves."""
MAX_SLOW_PIXELS = 16_000_000
"""The largest width x height for decoders written in Python, which take about a second for a million pixels."""
MAX_JPEG_SCANS = 100
"""Each pass over the picture takes time."""

MAX_IMAGES = 100
"""Images of one question: each takes memory before it is known whether they fit together."""
MAX_PAGES = 10_000
"""Pages of a document that is read page by page."""
DEFAULT_FRAMES = 8
"""Frames of a video or an animation, unless another number is asked for."""
MAX_VIDEO_BYTES = 4 * 2**30
"""Size of a video file, of which only parts are read."""
MAX_VIDEO_PIXELS = 36_000_000
"""The largest width x height of a video, 8K: a decoder keeps up to 17 frames."""


@dataclass(frozen=True)
class Limits:
    """Limits for one image file. ``total_seconds`` covers a whole download, including redirects."""

    max_bytes: int = 256 * 1024 * 1024
    connect_seconds: float = 10.0
    total_seconds: float = 60.0


DEFAULT_LIMITS = Limits()


def too_many_bytes(name: str, limits: Limits) -> ImageError:
    size = limits.max_bytes
    shown = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size} bytes"
    return ImageError(f"{name} is larger than {shown}", "Make the picture smaller, or convert it to JPEG, first.")


def too_many_images(name: str, count: int, what: str, room: int = MAX_IMAGES) -> UsageError:
    """Return the error for a document of more pages or frames (``what``) than a question has room for."""
    if room < 1:
        return UsageError(
            f"there are {MAX_IMAGES} images before {name}, and one question takes no more", "Ask about fewer at a time."
        )
    more = f" {room} more images" if room < MAX_IMAGES else f" {room} images"
    example = f"{name}#1-{room}" if what == "page" else f"--frames {room}"
    return UsageError(f"{name} has {count:,} {what}s, and one question takes{more}", f"Choose up to {room}: {example}")


def too_many_pixels(name: str, size: str) -> ImageError:
    return ImageError(
        f"{name} is too large: {size} has more than {MAX_PIXELS // 1_000_000} million pixels", SMALLER_HINT
    )


SMALLER_HINT = "Make it smaller first; the model sees at most 4 tiles of 560 x 560 pixels anyway."
