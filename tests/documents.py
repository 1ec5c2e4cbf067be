"""Documents and videos for tests, and what they need."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

DOCUMENTS = Path(__file__).parent / "data/documents"

needs_pdf = pytest.mark.skipif(
    not find_spec("pypdfium2"), reason="pypdfium2, which the extra pdf installs, is not there"
)
needs_video = pytest.mark.skipif(not find_spec("av"), reason="PyAV, which the extra video installs, is not there")


def pdf_of_pictures(path: Path, *pictures: Path) -> Path:
    """Save a document of one page for each picture, as large as that."""
    first, *others = (Image.open(picture).convert("RGB") for picture in pictures)
    first.save(path, save_all=True, append_images=others)
    return path
