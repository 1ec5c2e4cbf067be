"""A folder with the files that the pages name, and the built-in model in the place of 11B."""

import json
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from mllama_cli.system.paths import built_in_model
from tests.conftest import ROOT
from tests.documents import pdf_of_pictures

DATA = ROOT / "tests/data"
_TALK = [
    {"role": "user", "content": [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is this?"}]}
]
_COUNTS = {"type": "object", "properties": {"circles": {"type": "integer", "minimum": 0, "maximum": 9}}}


def make_workplace(folder: Path, page_text: str) -> None:
    """Put what a page's commands read into a folder: whatever files the page names, and models under their names."""
    for model in ("11b", "11b-base"):
        (folder / model).symlink_to(built_in_model(), target_is_directory=True)
    for name in set(re.findall(r"[\w./-]+\.(?:jpg|png|gif|tif|pdf|mp4|json|txt)\b", page_text)) | {"photo.jpg"}:
        if "/" not in name:
            _FILES.get(name, _drawing)(folder / name)
    for name in ("photos", "train", "products", "scans"):
        _pictures(folder / name)
    _document(folder / "scans/letter.pdf")
    (folder / "old").mkdir()
    _drawing(folder / "old/scan.webp")


def _pictures(folder: Path) -> None:
    (folder / "more").mkdir(parents=True)
    for name in ("photo2.jpg", "photo10.jpg", "more/photo3.png"):
        _drawing(folder / name)


def _drawing(file: Path) -> None:
    if (DATA / file.name).is_file():
        shutil.copy(DATA / file.name, file)
    elif file.suffix == ".pdf":
        _document(file)
    elif file.suffix == ".mp4":
        _video(file)
    elif file.suffix in (".jpg", ".png", ".webp", ".gif", ".tif"):
        Image.open(DATA / "drawing.png").convert("RGB").save(file)


def _photo(file: Path) -> None:
    """Save a drawing of the size of a photo, from which parts can be cut."""
    Image.open(DATA / "drawing.png").convert("RGB").resize((3000, 2000)).save(file)


def _document(file: Path) -> None:
    pdf_of_pictures(file, *(DATA / name for name in ("drawing.png", "card.png", "before.png", "after.png")))


def _video(file: Path) -> None:
    """Save 24 seconds, of one frame each; nothing where PyAV is not installed."""
    if find_spec("av") is None:
        return
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        picture = Image.open(DATA / "drawing.png").convert("RGB").resize((320, 240))
        stream.width, stream.height, stream.pix_fmt = *picture.size, "yuv420p"
        for frame in (*[av.VideoFrame.from_image(picture)] * 24, None):
            container.mux(stream.encode(frame))


def _missing(_: Path) -> None:
    pass


def _as_json(value: object) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(value), encoding="utf-8")


_FILES: dict[str, Callable[[Path], object]] = {
    "photo.jpg": _photo,
    "notes.txt": lambda file: file.write_text("Buy milk, bread and a new pencil.\n", encoding="utf-8"),
    "talk.json": _as_json(_TALK),
    "answered.json": _as_json([*_TALK, {"role": "assistant", "content": "A dog."}]),
    "form.json": _as_json(_COUNTS),
    "product.json": _as_json(_COUNTS),
    "phot.jpg": _missing,  # misspelt, to show what happens
}
