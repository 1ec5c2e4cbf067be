"""Count how often image files are decoded."""

from typing import Any

import pytest
from PIL import Image, PngImagePlugin


def count_png_decodes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows with each PNG file that Pillow opens from now on in this process."""
    opened: list[Any] = []
    factory, accept = PngImagePlugin.PngImageFile, Image.OPEN["PNG"][1]

    def counted(*arguments: Any) -> Image.Image:
        opened.append(arguments)
        return factory(*arguments)

    monkeypatch.setitem(Image.OPEN, "PNG", (counted, accept))
    return opened
