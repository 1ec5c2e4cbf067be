"""Five ways to draw the same scene that share nothing with the package's renderer."""

import io
import math
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import cairo
import matplotlib as mpl
from outlines import corners, smooth_path
from PIL import Image, ImageColor, ImageDraw, ImageFilter
from scenes import Drawing

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrow, Rectangle


def with_cairo(drawing: Drawing, *, outlined: bool = False) -> Image.Image:
    """Draw smooth vector graphics, filled or outlined."""
    width, height = drawing.size
    surface = cairo.ImageSurface(cairo.FORMAT_RGB24, width, height)
    context = cairo.Context(surface)
    context.set_source_rgb(*unit(drawing.ground))
    context.paint()
    for kind, colour, x, y, part in drawing.things:
        size = part * min(width, height)
        context.save()
        context.translate(x * width, y * height)
        pen = max(2.0, min(width, height) * 0.014)
        _cairo_path(context, kind, size)
        context.set_source_rgb(*unit(colour))
        context.set_line_join(cairo.LINE_JOIN_ROUND)
        if kind == "ring":
            context.set_line_width(size * 0.2)
            context.stroke()
        elif kind == "line":
            context.set_line_width(pen * 1.5)
            context.stroke()
        elif outlined:
            context.set_line_width(pen)
            context.stroke()
        else:
            context.fill()
        context.restore()
    return image_on(surface)


def image_on(surface: cairo.ImageSurface) -> Image.Image:
    """Return what was drawn on a surface in FORMAT_RGB24."""
    size, data = (surface.get_width(), surface.get_height()), bytes(surface.get_data())
    return Image.frombytes("RGB", size, data, "raw", "BGRX", surface.get_stride())


def _cairo_path(context: cairo.Context, kind: str, size: float) -> None:
    half = size / 2
    if kind == "circle":
        context.arc(0, 0, half, 0, 2 * math.pi)
    elif kind == "ring":
        context.arc(0, 0, half * 0.8, 0, 2 * math.pi)
    elif kind == "oval":
        context.save()
        context.scale(1, 0.6)
        context.arc(0, 0, half, 0, 2 * math.pi)
        context.restore()
    elif kind == "square":
        context.rectangle(-half, -half, size, size)
    elif kind == "rectangle":
        context.rectangle(-half, -half * 0.5, size, size * 0.5)
    elif kind == "line":
        context.move_to(-half, 0)
        context.line_to(half, 0)
    elif kind == "heart":
        context.move_to(0, half * 0.9)
        context.curve_to(-half * 1.5, -half * 0.1, -half * 0.7, -half * 1.25, 0, -half * 0.45)
        context.curve_to(half * 0.7, -half * 1.25, half * 1.5, -half * 0.1, 0, half * 0.9)
        context.close_path()
    else:
        points = corners(kind, size)
        context.move_to(*points[0])
        for point in points[1:]:
            context.line_to(*point)
        context.close_path()


def with_browser(drawing: Drawing, *, stroke: bool = False) -> Image.Image:
    """Paint an SVG with Chromium."""
    width, height = drawing.size
    body = "".join(
        _svg(kind, colour, x * width, y * height, part * min(width, height), stroke)
        for kind, colour, x, y, part in drawing.things
    )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{body}</svg>'
    return screenshot(f'<body style="margin:0;background:{drawing.ground}">{svg}</body>', drawing.size)


def _svg(kind: str, colour: str, x: float, y: float, size: float, stroke: bool) -> str:
    half = size / 2
    style = f'fill="{colour}"' + (' stroke="black" stroke-width="2"' if stroke else "")
    if kind == "circle":
        return f'<circle cx="{x}" cy="{y}" r="{half}" {style}/>'
    if kind == "oval":
        return f'<ellipse cx="{x}" cy="{y}" rx="{half}" ry="{half * 0.55}" {style}/>'
    if kind == "ring":
        return f'<circle cx="{x}" cy="{y}" r="{half * 0.8}" fill="none" stroke="{colour}" stroke-width="{size * 0.2}"/>'
    if kind == "line":
        return f'<line x1="{x - half}" y1="{y}" x2="{x + half}" y2="{y}" stroke="{colour}" stroke-width="5"/>'
    if kind == "heart":
        d = "M0 30 C-60 -10 -30 -50 0 -22 C30 -50 60 -10 0 30 Z"
        return f'<path d="{d}" transform="translate({x},{y}) scale({size / 68})" {style}/>'
    points = " ".join(f"{x + px:.1f},{y + py:.1f}" for px, py in corners(kind, size))
    return f'<polygon points="{points}" {style}/>'


def screenshot(page: str, size: tuple[int, int]) -> Image.Image:
    """Return what Chromium shows for a page, cropped, since its window is at least 500 pixels wide."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(f"<!doctype html><html>{page}</html>")
        window = f"--window-size={max(520, size[0])},{size[1] + 200}"
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", window]
        command += [f"--screenshot={target}", source.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return Image.open(target).convert("RGB").crop((0, 0, *size))


def with_matplotlib(drawing: Drawing, *, axes: bool = False) -> Image.Image:
    """Draw scatter markers and patches, with or without axes."""
    width, height = drawing.size
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
    area = figure.add_axes((0.1, 0.1, 0.85, 0.85) if axes else (0, 0, 1, 1))
    area.set_facecolor(drawing.ground)
    area.set_xlim(0, width)
    area.set_ylim(height, 0)
    if not axes:
        area.axis("off")
        figure.set_facecolor(drawing.ground)
    markers = {"circle": "o", "square": "s", "star": "*", "diamond": "d", "cross": "P", "heart": "$\u2665$"}
    for kind, colour, x, y, part in drawing.things:
        size, px, py = part * min(width, height), x * width, y * height
        if kind in markers and kind != "heart":
            scale = {"star": 1.15, "square": 0.92}.get(kind, 1.0)
            area.scatter([px], [py], s=(size * 0.72 * scale) ** 2, marker=markers[kind], c=[colour], linewidths=0)
        elif kind == "heart":
            ts = [i / 50 * 2 * math.pi for i in range(50)]
            xs = [px + size / 34 * 16 * math.sin(t) ** 3 for t in ts]
            ys = [
                py - size / 34 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                for t in ts
            ]
            area.fill(xs, ys, color=colour)
        elif kind == "ring":
            area.scatter(
                [px], [py], s=(size * 0.6) ** 2, facecolors="none", edgecolors=[colour], linewidths=size * 0.13
            )
        elif kind == "oval":
            area.add_patch(Ellipse((px, py), size, size * 0.6, color=colour))
        elif kind == "rectangle":
            area.add_patch(Rectangle((px - size / 2, py - size / 4), size, size / 2, color=colour))
        elif kind == "line":
            area.plot([px - size / 2, px + size / 2], [py, py], color=colour, linewidth=4)
        elif kind.startswith("arrow"):
            dx, dy = (size, 0) if kind == "arrow-right" else (0, -size)
            area.add_patch(
                FancyArrow(
                    px - dx / 2,
                    py - dy / 2,
                    dx,
                    dy,
                    width=size * 0.16,
                    head_width=size * 0.5,
                    head_length=size * 0.4,
                    length_includes_head=True,
                    color=colour,
                )
            )
        else:
            area.fill(*zip(*[(px + a, py + b) for a, b in corners(kind, size)], strict=True), color=colour)
    return image_of(figure)


def image_of(figure: Figure) -> Image.Image:
    """Render a figure of 100 dots per inch and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


def with_plain_pillow(drawing: Drawing, *, outlined: bool = False) -> Image.Image:
    """Draw hard pixels, as a first script or an old paint program does."""
    width, height = drawing.size
    image = Image.new("RGB", drawing.size, drawing.ground)
    draw = ImageDraw.Draw(image)
    for kind, colour, x, y, part in drawing.things:
        size, px, py = part * min(width, height), x * width, y * height
        box = (px - size / 2, py - size / 2, px + size / 2, py + size / 2)
        how = {"outline": colour, "width": 5} if outlined else {"fill": colour}
        if kind == "circle":
            draw.ellipse(box, **how)
        elif kind == "ring":
            draw.ellipse(box, outline=colour, width=int(size * 0.19))
        elif kind == "oval":
            draw.ellipse((box[0], py - size * 0.3, box[2], py + size * 0.3), **how)
        elif kind == "line":
            draw.line((box[0], py, box[2], py), fill=colour, width=5)
        elif kind == "heart":
            r = size / 4
            draw.pieslice((px - 2 * r, py - 2 * r, px, py), 180, 360, fill=colour)
            draw.pieslice((px, py - 2 * r, px + 2 * r, py), 180, 360, fill=colour)
            draw.polygon([(px - 2 * r, py - r), (px + 2 * r, py - r), (px, py + 1.7 * r)], fill=colour)
        else:
            points = [(px + a, py + b) for a, b in corners(kind, size)]
            if outlined:
                draw.line([*points, points[0], points[1]], fill=colour, width=5)
            else:
                draw.polygon(points, fill=colour)
    return image


def with_felt_pen(drawing: Drawing) -> Image.Image:
    """Imitate a scanned drawing by hand: unsteady outlines drawn twice, hatched, grayish, a little askew."""
    rng = random.Random(drawing.name)
    width, height = drawing.size
    image = Image.new("RGB", drawing.size, (246, 243, 235))
    for kind, colour, x, y, part in drawing.things:
        size, px, py = part * min(width, height), x * width, y * height
        path = smooth_path(kind, size)
        mask = Image.new("L", image.size, 0)
        pen = ImageDraw.Draw(mask)
        shaky = [(px + a + rng.gauss(0, size * 0.008), py + b + rng.gauss(0, size * 0.008)) for a, b in path]
        if kind == "line":
            pen.line(shaky, fill=255, width=6, joint="curve")
        elif kind == "ring":
            pen.line([*shaky, *shaky[:2]], fill=255, width=int(size * 0.2), joint="curve")
        else:
            inside = Image.new("L", image.size, 0)
            ImageDraw.Draw(inside).polygon(shaky, fill=255)
            hatch = Image.new("L", image.size, 0)
            strokes = ImageDraw.Draw(hatch)
            for offset in range(-height, width + height, 5):
                start = offset + rng.uniform(-1.5, 1.5)
                strokes.line((start, 0, start + height * 0.6, height), fill=235, width=4)
            mask.paste(hatch, mask=inside)
            for _ in range(2):
                again = [(a + rng.gauss(0, 0.8), b + rng.gauss(0, 0.8)) for a, b in shaky]
                pen.line([*again, *again[:2]], fill=255, width=4, joint="curve")
        image.paste(ImageColor.getrgb(colour), mask=mask)
    image = image.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=(240, 237, 228))
    grain = Image.effect_noise(image.size, 14).convert("RGB")
    return Image.blend(image, grain, 0.07).filter(ImageFilter.GaussianBlur(0.7))


def unit(colour: str) -> tuple[float, float, float]:
    """Return red, green and blue from 0 to 1."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return red / 255, green / 255, blue / 255


WAYS: dict[str, Callable[[Drawing], Image.Image]] = {
    "cairo": with_cairo,
    "cairo-outlined": lambda drawing: with_cairo(drawing, outlined=True),
    "browser": with_browser,
    "browser-stroke": lambda drawing: with_browser(drawing, stroke=True),
    "matplotlib": with_matplotlib,
    "matplotlib-axes": lambda drawing: with_matplotlib(drawing, axes=True),
    "pillow": with_plain_pillow,
    "pillow-outlined": lambda drawing: with_plain_pillow(drawing, outlined=True),
    "felt-pen": with_felt_pen,
}
