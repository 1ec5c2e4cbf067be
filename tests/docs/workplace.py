"""A folder with the files that the pages name, and the built-in model in the place of 11B."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mllama_cli.system.paths import built_in_model
from tests.conftest import ROOT

DATA = ROOT / "tests/data"
_TALK = [
    {"role": "user", "content": [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is this?"}]}
]
_COUNTS = {"type": "object", "properties": {"circles": {"type": "integer", "minimum": 0, "maximum": 9}}}


def make_workplace(folder: Path, page_text: str) -> None:
    """Put what a page's commands read into a folder: whatever files the page names, and models under their names."""
    for model in ("11b", "11b-base"):
        (folder / model).symlink_to(built_in_model(), target_is_directory=True)
    for name in set(re.findall(r"[\w./-]+\.(?:jpg|png|json|txt|pdf|mp4)\b", page_text)) | {"photo.jpg"}:
        if "/" not in name:
            _FILES.get(name, _drawing)(folder / name)
    (folder / "scans").mkdir()
    shutil.copy(DATA / "documents/letter.pdf", folder / "scans/scan.pdf")
    for name in ("photos", "train", "products"):
        _pictures(folder / name)
    (folder / "old").mkdir()
    _drawing(folder / "old/scan.webp")


def _pictures(folder: Path) -> None:
    (folder / "more").mkdir(parents=True)
    for name in ("photo2.jpg", "photo10.jpg", "more/photo3.png"):
        _drawing(folder / name)


def _drawing(file: Path) -> None:
    if file.suffix in (".pdf", ".mp4"):
        shutil.copy(DATA / "documents" / {".pdf": "letter.pdf", ".mp4": "long.mp4"}[file.suffix], file)
    elif (DATA / file.name).is_file():
        shutil.copy(DATA / file.name, file)
    elif file.suffix in (".jpg", ".png", ".webp"):
        Image.open(DATA / "drawing.png").convert("RGB").save(file)


def _missing(_: Path) -> None:
    pass


def _as_json(value: object) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(value), encoding="utf-8")


_FILES: dict[str, Callable[[Path], object]] = {
    "notes.txt": lambda file: file.write_text("Buy milk, bread and a new pencil.\n", encoding="utf-8"),
    "talk.json": _as_json(_TALK),
    "answered.json": _as_json([*_TALK, {"role": "assistant", "content": "A dog."}]),
    "form.json": _as_json(_COUNTS),
    "product.json": _as_json(_COUNTS),
    "phot.jpg": _missing,  # misspelt, to show what happens
}
