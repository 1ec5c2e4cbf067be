"""Size and time limits for reading images."""

from dataclasses import dataclass

from mllama_cli.core.errors import ImageError


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
