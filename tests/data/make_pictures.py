"""Makes the pictures of this folder. They are kept; run it only to change them.

python tests/data/make_pictures.py
"""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
FINE = 4
"""Drawn so much larger, then shrunk."""


def star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    turns = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
    return [
        (x + math.cos(t) * radius * (1, 0.4)[i % 2], y + math.sin(t) * radius * (1, 0.4)[i % 2])
        for i, t in enumerate(turns)
    ]


class Sheet:
    """A sheet to draw on, in pixels of the finished picture."""

    def __init__(self, width: int, height: int, ground: str) -> None:
        self.image = Image.new("RGB", (width * FINE, height * FINE), ground)
        self.draw = ImageDraw.Draw(self.image)

    def circle(self, x: float, y: float, radius: float, colour: str) -> None:
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse(tuple(v * FINE for v in box), fill=colour)

    def square(self, x: float, y: float, side: float, colour: str) -> None:
        box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        self.draw.rectangle(tuple(v * FINE for v in box), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: str) -> None:
        self.draw.polygon([(x * FINE, y * FINE) for x, y in points], fill=colour)

    def text(self, x: float, y: float, text: str, size: float, colour: str) -> None:
        self.draw.text((x * FINE, y * FINE), text, colour, ImageFont.load_default(size * FINE), anchor="mm")

    def finished(self) -> Image.Image:
        return self.image.reduce(FINE)


def drawing() -> Image.Image:
    """Three red circles, a blue square and a yellow star."""
    sheet = Sheet(640, 480, "#fbf9f4")
    for x, y in ((115, 120), (320, 355), (535, 130)):
        sheet.circle(x, y, 62, "#e53935")
    sheet.square(115, 365, 120, "#1e66d0")
    sheet.polygon(star(535, 362, 82), "#fdc92b")
    return sheet.finished()


def card() -> Image.Image:
    sheet = Sheet(480, 280, "#ffffff")
    sheet.text(240, 140, "HELLO", 110, "#1a1a1a")
    return sheet.finished()


def pair(with_star: bool) -> Image.Image:
    sheet = Sheet(480, 320, "#ffffff")
    sheet.circle(120, 160, 70, "#2e9e44")
    if with_star:
        sheet.polygon(star(350, 160, 80), "#7b2fbe")
    return sheet.finished()


def sideways() -> tuple[Image.Image, Image.Exif]:
    """A blue square on the left and a red circle on the right, stored on its side as a phone does."""
    sheet = Sheet(600, 300, "#ffffff")
    sheet.square(110, 150, 130, "#1e66d0")
    sheet.circle(490, 150, 70, "#e53935")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    return sheet.finished().transpose(Image.Transpose.ROTATE_90), exif


def main() -> None:
    for name, image in (("drawing", drawing()), ("card", card()), ("before", pair(False)), ("after", pair(True))):
        image.quantize(64, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)
    image, exif = sideways()
    image.save(FOLDER / "sideways.jpg", quality=85, exif=exif)


if __name__ == "__main__":
    main()
