"""Which images a path, a pattern or several of them mean."""

from pathlib import Path

import pytest

from mllama_cli.chat.image_sources import expand_patterns, typed_images
from mllama_cli.core.errors import ImageNotFoundError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, which is the current one and the user's home."""
    for name in (
        "b10.png",
        "b9.jpg",
        "a.PNG",
        "notes.txt",
        ".hidden.png",
        "c[1].png",
        "c1.png",
        "d1.pdf",
        "d2.pdf",
        "e#1.png",
        "f.mp4",
        "my photos/x y.png",
    ):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos" / "folder.png").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("photos/b*", ["photos/b9.jpg", "photos/b10.png"]),
        ("photos/*", [f"photos/{name}" for name in ("a.PNG", "b9.jpg", "b10.png", "c1.png", "c[1].png", "e#1.png")]),
        ("photos/*.pdf", ["photos/d1.pdf", "photos/d2.pdf"]),
        ("photos/d*.pdf#2-4", ["photos/d1.pdf#2-4", "photos/d2.pdf#2-4"]),
        ("photos/b*#1,2,3,4", ["photos/b9.jpg#1,2,3,4", "photos/b10.png#1,2,3,4"]),
        ("photos/*.mp4", ["photos/f.mp4"]),
        ("photos/d1.pdf#2", ["photos/d1.pdf#2"]),
        ("**/*y.png", ["photos/my photos/x y.png"]),
        ("~/photos/b?.jpg", ["{home}/photos/b9.jpg"]),
        ("photos/c[1].png", ["photos/c[1].png"]),
        ("photos/c[0-9].png", ["photos/c1.png"]),
        ("photos/none.png", ["photos/none.png"]),
        ("-", ["-"]),
        ("https://example.com/a.png?size=[1]", ["https://example.com/a.png?size=[1]"]),
        ("data:image/png,?*", ["data:image/png,?*"]),
    ],
)
def test_a_pattern_is_replaced_by_its_images(folder: Path, source: str, names: list[str]) -> None:
    expected = [name.format(home=folder) if "{" in name else name for name in names]
    assert expand_patterns([source]) == expected
    assert expand_patterns(["x.png", source]) == ["x.png", *expected]


@pytest.mark.parametrize("pattern", ["photos/*.webp", "nowhere/*", "photos/*.txt", "photos/f*", "[", "x" * 5000 + "*"])
def test_a_pattern_that_matches_no_image_is_an_error(pattern: str) -> None:
    with pytest.raises(ImageNotFoundError, match="no picture matches"):
        expand_patterns([pattern])
    with pytest.raises(ImageNotFoundError, match="no picture matches"):
        typed_images(pattern)


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("photos/b*", ["b9.jpg", "b10.png"]),
        ("'photos/b*'", ["b9.jpg", "b10.png"]),
        ("photos/my\\ photos/*", ["x y.png"]),
        ("photos/my photos/*", ["x y.png"]),
        ('"photos/my photos/*"', ["x y.png"]),
        ("photos/my photos", ["x y.png"]),
        ("'photos/my photos'", ["x y.png"]),
        ("photos/a.PNG photos/b*", ["a.PNG", "b9.jpg", "b10.png"]),
        ("photos/c[1].png", ["c[1].png"]),
        ("photos/c\\[1\\].png", ["c[1].png"]),
        ("photos/my photos/x y.png", ["x y.png"]),
    ],
)
def test_what_is_typed_after_image(argument: str, names: list[str]) -> None:
    assert [Path(found).name for found in typed_images(argument)] == names


def test_a_folder_without_images_is_an_error() -> None:
    with pytest.raises(ImageNotFoundError, match="there are no pictures in empty"):
        typed_images("empty")
