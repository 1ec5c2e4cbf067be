"""Make drawings with known content, and files that only look like images."""

import io
import random
from functools import lru_cache
from pathlib import Path

from PIL import Image

from mllama_cli.sketch.questions.samples import make_sample

FIRST = 1_700_000_000_000
"""The first seed, beyond those used in training."""


def drawings(folder: Path, count: int) -> dict[str, str]:
    """Write 0.png, 1.png, ...; return what each shows, in the built-in model's words, by stem."""
    folder.mkdir(exist_ok=True)
    facts = {}
    for number in range(count):
        picture, answer = drawing(number)
        (folder / f"{number}.png").write_bytes(picture)
        facts[str(number)] = answer
    return facts


def opened(number: int) -> Image.Image:
    """Return the drawing of a number."""
    return Image.open(io.BytesIO(drawing(number)[0]))


@lru_cache(maxsize=256)
def drawing(number: int) -> tuple[bytes, str]:
    """Return the PNG of a number's drawing, and what it shows in the built-in model's words."""
    seed = FIRST + number * 1000
    while True:  # training has several wordings: this is the one that `mllama caption` gets
        sample = make_sample(seed, "describe")
        answer = sample.answer
        if answer.startswith("I see ") and " in the " not in answer and " at the " not in answer:
            buffer = io.BytesIO()
            sample.images[0].save(buffer, "PNG")
            return buffer.getvalue(), answer
        seed += 1


def bad_files(folder: Path) -> list[str]:
    """Write twenty files named like images, each bad in its own way or of another format; return their names."""
    rng = random.Random(3)
    buffer = io.BytesIO()
    Image.effect_noise((300, 200), 80).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    buffer = io.BytesIO()
    Image.effect_noise((300, 200), 80).save(buffer, "PNG")
    png = buffer.getvalue()
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    contents = {
        "bad-empty.jpg": b"",
        "bad-empty.png": b"",
        "bad-text.jpg": b"not a picture\n",
        "bad-html.png": b"<!doctype html><html><body>404</body></html>",
        "bad-json.webp": b'{"error": "forbidden"}',
        "bad-pdf.jpg": b"%PDF-1.7\n" + bytes(100),
        "bad-zip.png": b"PK\x03\x04" + bytes(100),
        "bad-mp4.jpg": b"\x00\x00\x00\x18ftypmp42" + bytes(100),
        "bad-noise.jpg": rng.randbytes(5000),
        "bad-noise.png": rng.randbytes(5000),
        "bad-noise.bmp": rng.randbytes(5000),
        "bad-cut.png": png[: len(png) // 2],
        "bad-cut.jpg": jpeg[: len(jpeg) // 3],
        "bad-header.png": png[:20],
        "bad-header.jpg": jpeg[:10],
        "bad-header.gif": b"GIF89a",
        "bad-header.webp": b"RIFF\x10\x00\x00\x00WEBP",
        "bad-bomb.png": bomb.getvalue(),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "bad-gone.png").symlink_to(folder / "nowhere.png")
    (folder / "bad-heic.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    return [*contents, "bad-gone.png", "bad-heic.heic"]
