"""The picture in the clipboard, and what is said when there is none."""

from pathlib import Path

import pytest
from PIL import Image, ImageGrab

from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.processing.clipboard import read_clipboard_image
from mllama_cli.processing.images import open_image

DRAWING = Path(__file__).parents[1] / "data" / "drawing.png"


def holding(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: found)


def test_a_copied_picture_keeps_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    holding(monkeypatch, image)
    part = read_clipboard_image()
    assert part.name == "clipboard.png"
    assert open_image(part).tobytes() == image.tobytes()


def test_a_copied_file_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    holding(monkeypatch, [str(tmp_path / "notes.txt"), str(tmp_path / "gone.png"), str(DRAWING)])
    part = read_clipboard_image()
    assert (part.name, part.data) == (str(DRAWING), DRAWING.read_bytes())


@pytest.mark.parametrize("found", [None, [], ["notes.txt"]])
def test_a_clipboard_without_a_picture(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    holding(monkeypatch, found)
    with pytest.raises(ImageError, match="no picture in the clipboard"):
        read_clipboard_image()


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
        read_clipboard_image()
    assert hint in caught.value.hint
