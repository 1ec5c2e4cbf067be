"""Match files by patterns such as ``photos/*.jpg``, for shells that did not, or were kept from it by quotes."""

import glob
import os
import re

from mllama_cli.core.filetypes import DOCUMENT_SUFFIXES, IMAGE_SUFFIXES
from mllama_cli.core.selection import split_selection
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
    """Return the image files that a pattern matches; None for a path, a URL or anything else that is not a pattern.

    Documents and videos are matched by a pattern that ends like their names. What follows a # belongs to each match.
    """
    if "://" in source or source.lstrip()[:5].lower() == "data:" or "\0" in source:
        return None
    pattern, selection = split_selection(source)
    if selection and (matches(source) or os.path.lexists(expanded(source))):  # a part of the names
        pattern, selection = source, ""
    found = matches(pattern)
    if found is None:
        return None
    documents = has_document_name(pattern)
    named = [each for each in found if has_image_name(each) or (documents and has_document_name(each))]
    return [f"{each}#{selection}" if selection else each for each in named if is_file(each)]


def has_image_name(path: str) -> bool:
    """Return whether a name ends like that of an image file."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def has_document_name(path: str) -> bool:
    """Return whether a name ends like that of a PDF document or a video."""
    return path.lower().endswith(DOCUMENT_SUFFIXES)


def has_source_name(source: str) -> bool:
    """Return whether a source, without what follows its #, ends like an image, a document or a video."""
    return any(has_image_name(each) or has_document_name(each) for each in (source, split_selection(source)[0]))
