"""The picture in the clipboard, and what is said when there is none."""

import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image, ImageGrab

from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.processing.clipboard import grab_clipboard_image, read_clipboard_image
from mllama_cli.processing.decoding import Decoder
from mllama_cli.processing.images import open_image
from tests.processing.pictures import file_of, noise, raw_png

DRAWING = Path(__file__).parents[1] / "data" / "drawing.png"


def holding(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: found)


def test_a_copied_picture_keeps_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    holding(monkeypatch, image)
    part = grab_clipboard_image()
    assert part.name == "clipboard.png"
    assert open_image(part).tobytes() == image.tobytes()


def test_a_copied_file_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    holding(monkeypatch, [str(tmp_path / "notes.txt"), str(tmp_path / "gone.png"), str(DRAWING)])
    part = grab_clipboard_image()
    assert (part.name, part.data) == (str(DRAWING), DRAWING.read_bytes())


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a file whose bytes an ``xclip`` that comes first on the path gives as the clipboard."""
    if sys.platform != "linux":
        pytest.skip("elsewhere no program gives the clipboard")
    script = tmp_path / "xclip"
    script.write_text(f"#!/bin/sh\nexec cat '{tmp_path}/copied'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return tmp_path / "copied"


def test_a_worker_reads_the_clipboard(copied: Path) -> None:
    image = noise(40, 30)
    copied.write_bytes(file_of(image))
    with closing(Decoder(1)) as decoder:
        part = read_clipboard_image(decoder)
        assert part.name == "clipboard.png"
        assert open_image(part).tobytes() == image.tobytes()


HOSTILE = {
    "cut short": lambda: file_of(noise())[:-60],
    "not a picture": lambda: b"hello",
    "more pixels than any picture": lambda: raw_png(30_000, 30_000, 8, 6, b""),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_picture_in_the_clipboard_fails_in_the_worker(make: Callable[[], bytes], copied: Path) -> None:
    copied.write_bytes(make())
    with closing(Decoder(1)) as decoder:
        with pytest.raises(ImageError, match="the picture in the clipboard") as caught:
            read_clipboard_image(decoder)
        assert caught.value.hint
        copied.write_bytes(DRAWING.read_bytes())
        assert open_image(read_clipboard_image(decoder)).size


@pytest.mark.parametrize("found", [None, [], ["notes.txt"]])
def test_a_clipboard_without_a_picture(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    holding(monkeypatch, found)
    with pytest.raises(ImageError, match="no picture in the clipboard"):
        grab_clipboard_image()


@pytest.mark.parametrize(
    ("environment", "hint"), [({"WAYLAND_DISPLAY": "w"}, "wl-clipboard"), ({"DISPLAY": ":0"}, "xclip"), ({}, "ssh")]
)
def test_a_missing_helper_is_named(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], hint: str) -> None:
    def fails() -> None:
        raise NotImplementedError("wl-paste or xclip is required for ImageGrab.grabclipboard() on Linux")

    for name in ("WAYLAND_DISPLAY", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(ImageGrab, "grabclipboard", fails)
    with pytest.raises(MllamaError, match="no program that reads it was found") as caught:
        grab_clipboard_image()
    assert hint in caught.value.hint
