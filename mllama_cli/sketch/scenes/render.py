"""Draw a scene with Pillow: background, shapes, lettering, then the effects of scanners and cameras."""

import io
import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mllama_cli.sketch.scenes.fonts import load_font
from mllama_cli.sketch.scenes.outlines import outline
from mllama_cli.sketch.scenes.palette import Rgb
from mllama_cli.sketch.scenes.scene import Background, Finish, Lettering, Scene, Shape


def render(scene: Scene) -> Image.Image:
    """Return the RGB image of a scene. The same scene gives the same pixels."""
    width, height = scene.size
    # Larger images are smoothed when the image processor shrinks them.
    fine = 2 if scene.finish.smooth and max(width, height) <= 480 else 1
    plain = scene.background.kind == "plain"
    image = _background(
        scene.background, width * fine if plain else width, height * fine if plain else height, scene.seed
    )
    if fine > 1 and not plain:
        image = image.resize((width * fine, height * fine), Image.Resampling.NEAREST)
    unit = scene.pixels * fine
    if scene.background.axes:
        _draw_axes(image, scene.background, fine)
    draw = ImageDraw.Draw(image)
    for shape in scene.shapes:
        if shape.hatch:
            _draw_hatched(image, shape, unit)
        else:
            _draw_shape(draw, shape, unit)
    if fine > 1:
        image = image.reduce(fine)
    if scene.lettering is not None:
        image = _draw_lettering(image, scene.lettering, scene.pixels)
    if scene.background.frame is not None:
        edge = max(1, round(min(width, height) * 0.008))
        ImageDraw.Draw(image).rectangle((0, 0, width - 1, height - 1), outline=scene.background.frame, width=edge)
    return _finished(image, scene.finish, scene.seed)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, unit: float) -> None:
    corners = outline(shape) * unit
    points = [(float(x), float(y)) for x, y in corners]
    if shape.kind == "line":
        stroke(draw, points, shape.rgb, shape.line * unit, closed=False)
    elif shape.line:
        stroke(draw, points, shape.rgb, shape.line * unit, closed=True)
    else:
        draw.polygon(points, fill=shape.rgb)
        if shape.border is not None:
            stroke(draw, points, shape.border, max(1.0, 0.008 * unit), closed=True)


def _draw_hatched(image: Image.Image, shape: Shape, unit: float) -> None:
    """Fill a shape with crayon strokes and outline it with the same crayon."""
    reach = shape.size * unit
    left, top = round(shape.x * unit - reach), round(shape.y * unit - reach)
    points = [(float(x), float(y)) for x, y in outline(shape) * unit]
    side = round(2 * reach) + 1  # masks of the whole image would be slow
    inside, strokes = Image.new("L", (side, side), 0), Image.new("L", (side, side), 0)
    ImageDraw.Draw(inside).polygon([(x - left, y - top) for x, y in points], fill=255)
    draw, rng = ImageDraw.Draw(strokes), random.Random(shape.seed)
    step = max(2.0, shape.hatch * unit)
    thick, lean = max(1, round(step * rng.uniform(0.55, 0.95))), rng.uniform(-1.2, 1.2)
    for number in range(round(-2 * reach / step), round(2 * reach / step)):
        start = reach + number * step + rng.uniform(-0.2, 0.2) * step
        draw.line((start - lean * reach, 0, start + lean * reach, side), fill=255, width=thick)
    image.paste(shape.rgb, (left, top), ImageChops.multiply(inside, strokes))
    stroke(ImageDraw.Draw(image), points, shape.rgb, 0.5 * step, closed=True)


def _draw_axes(image: Image.Image, background: Background, fine: int) -> None:
    """Draw the frame, ticks and numbers that plotting programs put around everything."""
    draw = ImageDraw.Draw(image)
    ink = (30, 30, 30) if sum(background.rgb) > 330 else (220, 220, 220)
    left, top = background.axes * image.width, background.axes * image.height
    right, bottom = image.width - left, image.height - top
    draw.rectangle((left, top, right, bottom), outline=ink, width=fine)
    font = load_font("", max(6, round(min(image.size) * 0.03)))
    for number in range(6):
        x, y = left + (right - left) * number / 5, bottom - (bottom - top) * number / 5
        draw.line((x, bottom, x, bottom + 3 * fine), fill=ink, width=fine)
        draw.line((left, y, left - 3 * fine, y), fill=ink, width=fine)
        draw.text((x, bottom + 4 * fine), str(number * 20), ink, font, "mt")
        draw.text((left - 4 * fine, y), str(number * 20), ink, font, "rm")


def stroke(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: Rgb, width: float, *, closed: bool
) -> None:
    """Draw a line through points with round joints; Pillow's own joints leave gaps at sharp corners."""
    thick = max(1, round(width))
    path = [*points, points[0], points[1]] if closed else points
    draw.line(path, fill=colour, width=thick, joint="curve" if thick > 2 else None)


def _background(background: Background, width: int, height: int, seed: int) -> Image.Image:
    rgb = background.rgb
    if background.kind == "plain" or background.other is None:
        return Image.new("RGB", (width, height), rgb)
    rng = random.Random(seed)
    other = Image.new("RGB", (width, height), background.other)
    image = Image.new("RGB", (width, height), rgb)
    if background.kind == "gradient":
        ramp = Image.linear_gradient("L") if rng.random() < 0.7 else Image.radial_gradient("L")
        ramp = ramp.rotate(rng.randrange(4) * 90)
        return Image.composite(other, image, ramp.resize((width, height)))
    if background.kind in ("grid", "ruled"):
        draw = ImageDraw.Draw(image)
        step = max(6, round(min(width, height) * rng.uniform(0.05, 0.14)))
        for y in range(rng.randrange(step), height, step):
            draw.line((0, y, width, y), fill=background.other)
        if background.kind == "grid":
            for x in range(rng.randrange(step), width, step):
                draw.line((x, 0, x, height), fill=background.other)
        return image
    coarse = 1 if background.kind == "grain" else rng.randint(3, 40)
    noise = _noise(rng, max(2, width // coarse + 1), max(2, height // coarse + 1))
    mask = Image.fromarray(((noise.astype(np.int16) - 128) * background.strength + 128).clip(0, 255).astype(np.uint8))
    return Image.composite(other, image, mask.resize((width, height), Image.Resampling.BICUBIC))


def _draw_lettering(image: Image.Image, lettering: Lettering, unit: float) -> Image.Image:
    """Draw centred text. Pillow anti-aliases it; rotated text is drawn on a layer of its own."""
    font = load_font(lettering.font, max(6, round(lettering.size * unit)))
    centre = lettering.x * unit, lettering.y * unit
    if not lettering.angle:
        ImageDraw.Draw(image).multiline_text(centre, lettering.text, lettering.rgb, font, "mm", align="center")
        return image
    side = round(lettering.width * unit * 1.1 + lettering.size * unit * 3)
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).multiline_text((side / 2, side / 2), lettering.text, 255, font, "mm", align="center")
    mask = mask.rotate(-lettering.angle, Image.Resampling.BILINEAR)
    image.paste(lettering.rgb, (round(centre[0] - side / 2), round(centre[1] - side / 2)), mask)
    return image


def _finished(image: Image.Image, finish: Finish, seed: int) -> Image.Image:
    if finish.blur:
        image = image.filter(ImageFilter.BoxBlur(finish.blur))
    if finish.shade:
        ramp = Image.linear_gradient("L").rotate((seed % 4) * 90).resize(image.size)
        dark = image.point([round(v * (1 - finish.shade)) for v in range(256)] * 3)
        image = Image.composite(dark, image, ramp)
    if finish.noise:
        image = add_noise(image, finish.noise, seed)
    if finish.jpeg:
        image = jpeg(image, finish.jpeg)
    return image


def add_noise(image: Image.Image, amount: float, seed: int) -> Image.Image:
    """Add noise of that standard deviation."""
    rng = random.Random(seed)
    pixels = np.asarray(image).astype(np.int16)
    grain = _noise(rng, image.width, image.height).astype(np.int16) - 128
    pixels += ((grain * round(amount * 256 / 40)) >> 8)[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Return the image after JPEG compression of that quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@lru_cache(maxsize=1)
def _noise_bank() -> NDArray[np.uint8]:
    """Return normal noise around 128 with deviation 40, made once because it would dominate the time of an image."""
    values = np.random.default_rng(7).normal(128, 40, (1600, 1600))
    return values.clip(0, 255).astype(np.uint8)


def _noise(rng: random.Random, width: int, height: int) -> NDArray[np.uint8]:
    bank = _noise_bank()
    if width > 1500 or height > 1500:
        bank = np.tile(bank, (height // 1600 + 2, width // 1600 + 2))
    top, left = rng.randrange(bank.shape[0] - height), rng.randrange(bank.shape[1] - width)
    return bank[top : top + height, left : left + width]
