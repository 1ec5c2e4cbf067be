"""Make the images of this folder and questions.json. Needs pycairo, matplotlib and Chromium.

    python tests/sketch/foreign/make.py

The images are committed, so nobody has to run it again. Nothing here imports the package, so that the built-in model is
judged on drawings that its own renderer did not make.
"""

import io
import json
from pathlib import Path

from lettering import TEXT_WAYS
from PIL import Image
from scenes import CHANGES, SAID_COLOURS, SHAPES, TEXTS
from tools import WAYS

FOLDER = Path(__file__).parent
SCANNED = "three-circles big-and-small row-of-four above-below green-triangle mixed-five hearts"
JPEG_WAYS = ("felt-pen", "matplotlib-axes")


def main() -> None:
    questions = []
    plans = list(WAYS)
    for number, drawing in enumerate(SHAPES):
        ways = {plans[number % len(plans)], plans[(number * 2 + 3) % len(plans)], "browser" if number % 2 else "cairo"}
        if drawing.size[0] < 100:
            ways &= {"cairo", "browser", "pillow"}
        if drawing.ground != "white":
            ways -= {"felt-pen"}
        if drawing.name in SCANNED.split():
            ways.add("felt-pen")
        for way in sorted(ways):
            if "outlined" in way and any(colour in ("gold", "yellow", "brown") for _, colour, *_ in drawing.things):
                way = way.removesuffix("-outlined")
            if "outlined" in way and any(kind == "heart" for kind, *_ in drawing.things) and "pillow" in way:
                way = "pillow"
            name = save(WAYS[way](drawing), f"{drawing.name}-{way}", way)
            questions += [entry([name], *question) for question in drawing.questions]
    for number, (text, ink, ground, size) in enumerate(TEXTS):
        for way in (list(TEXT_WAYS)[number % 4], list(TEXT_WAYS)[(number + 1) % 4]):
            draw, families = TEXT_WAYS[way]
            image = draw(text, ink, ground, size, families[number % len(families)])
            name = save(image, f"text-{text.lower().replace(' ', '-')}-{way}", way)
            ask = ("What does it say?", "what is written here", "Read the text.")[number % 3]
            questions.append(entry([name], ask, "read", [text]))
            if number % 3 == 0:
                questions.append(entry([name], "What colour is the text?", "colour", [SAID_COLOURS.get(ink, ink)]))
    for number, (first, second, asked) in enumerate(CHANGES):
        way = ("cairo", "browser", "pillow")[number]
        names = [save(WAYS[way](drawing), f"{drawing.name}-{way}", way) for drawing in (first, second)]
        questions += [entry(names, *question) for question in asked]
    lines = ",\n".join("  " + json.dumps(item) for item in unique(questions))
    (FOLDER / "questions.json").write_text(f"[\n{lines}\n]\n")
    pictures = [path for path in FOLDER.iterdir() if path.suffix in (".png", ".jpg")]
    size = sum(path.stat().st_size for path in pictures)
    print(f"{len(pictures)} pictures, {size} bytes, {len(questions)} questions")  # noqa: T201


def entry(images: list[str], question: str, task: str, keywords: list[str]) -> dict[str, object]:
    return {"images": images, "question": question, "task": task, "keywords": keywords}


def unique(questions: list[dict[str, object]]) -> list[dict[str, object]]:
    seen: dict[str, dict[str, object]] = {}
    for item in questions:
        seen.setdefault(json.dumps(item), item)
    return list(seen.values())


def save(image: Image.Image, name: str, way: str) -> str:
    """Save a PNG of few colours, or a JPEG for what should look scanned; return its name."""
    if way in JPEG_WAYS:
        image.save(FOLDER / f"{name}.jpg", quality=72)
        return f"{name}.jpg"
    buffer = io.BytesIO()
    image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    (FOLDER / f"{name}.png").write_bytes(buffer.getvalue())
    return f"{name}.png"


if __name__ == "__main__":
    main()
