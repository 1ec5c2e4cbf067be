"""Match files by patterns such as ``photos/*.jpg``, for shells that did not, or were kept from it by quotes."""

import glob
import os
import re

from mllama_cli.core.filetypes import IMAGE_SUFFIXES
from mllama_cli.core.text import natural_key
from mllama_cli.system.files import expanded, is_file


def matches(pattern: str) -> list[str] | None:
    """Return what a pattern matches, in natural order; None if it is the name of something, or has no *, ? or [."""
    path = str(expanded(pattern))
    if not glob.has_magic(path) or os.path.lexists(path):
        return None
    try:
        return sorted(glob.glob(path, recursive=True), key=natural_key)
    except (OSError, ValueError, re.error):  # a name that the system does not take
        return []


def matching_images(source: str) -> list[str] | None:
    """Return the image files that a pattern matches; None for a path, a URL or anything else that is not a pattern."""
    if "://" in source or source.lstrip()[:5].lower() == "data:" or "\0" in source:
        return None
    found = matches(source)
    return None if found is None else [each for each in found if has_image_name(each) and is_file(each)]


def has_image_name(path: str) -> bool:
    """Return whether a name ends like that of an image file."""
    return path.lower().endswith(IMAGE_SUFFIXES)
