"""Four ways to write a text that share nothing with the package's renderer."""

import html

import cairo
import matplotlib.pyplot as plt
from PIL import Image, ImageDraw, ImageFont
from tools import image_of, image_on, screenshot, unit


def text_by_browser(text: str, ink: str, ground: str, size: tuple[int, int], family: str) -> Image.Image:
    pixels = min(size[1] * 0.45, size[0] * 1.25 / len(text))
    style = f"margin:0;background:{ground};color:{ink};font:{pixels:.0f}px {family};display:flex;"
    style += f"height:{size[1]}px;width:{size[0]}px;align-items:center;justify-content:center"
    return screenshot(f'<body style="{style}">{html.escape(text)}</body>', size)


def text_by_cairo(text: str, ink: str, ground: str, size: tuple[int, int], family: str) -> Image.Image:
    surface = cairo.ImageSurface(cairo.FORMAT_RGB24, *size)
    context = cairo.Context(surface)
    context.set_source_rgb(*unit(ground))
    context.paint()
    context.select_font_face(family, cairo.FONT_SLANT_NORMAL, cairo.FONT_WEIGHT_BOLD)
    context.set_font_size(min(size[1] * 0.5, size[0] * 1.2 / len(text)))
    extents = context.text_extents(text)
    context.move_to(
        (size[0] - extents.width) / 2 - extents.x_bearing, (size[1] - extents.height) / 2 - extents.y_bearing
    )
    context.set_source_rgb(*unit(ink))
    context.show_text(text)
    return image_on(surface)


def text_by_pillow(text: str, ink: str, ground: str, size: tuple[int, int], family: str) -> Image.Image:
    image = Image.new("RGB", size, ground)
    font = ImageFont.load_default(min(size[1] * 0.45, size[0] * 1.2 / len(text)))
    ImageDraw.Draw(image).text((size[0] / 2, size[1] / 2), text, ink, font, anchor="mm")
    return image


def text_by_matplotlib(text: str, ink: str, ground: str, size: tuple[int, int], family: str) -> Image.Image:
    figure = plt.figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, facecolor=ground)
    points = 0.72 * min(size[1] * 0.45, size[0] * 1.2 / len(text))
    figure.text(0.5, 0.5, text, color=ink, fontsize=points, family=family, ha="center", va="center")
    return image_of(figure)


TEXT_WAYS = {
    "browser": (text_by_browser, ("serif", "Georgia, 'Liberation Serif'", "Arial, 'Liberation Sans'", "'FreeSans'")),
    "cairo": (text_by_cairo, ("Liberation Mono", "FreeSerif", "FreeSans")),
    "pillow": (text_by_pillow, ("",)),
    "matplotlib": (text_by_matplotlib, ("serif", "monospace")),
}
