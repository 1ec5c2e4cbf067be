"""Pictures in messages: what terminals paste when a file is dropped, what people type, and what is only prose."""

import shlex
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllama_cli.chat.dropped_paths import DroppedImages, find_images
from mllama_cli.core.errors import ImageNotFoundError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.png", "b.JPG", "my photo.jpg", "it's (1).webp", "naïve 写真.heic", "notes.txt", "a.b.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "Screenshot 2026-11-23 at 9.41.00\u202fAM.png").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("r.pdf", "clip.MP4", "r#1.pdf", "x.pdf#2"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "scan").write_bytes(b"%PDF-1.7")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "text", "paths"),
    [
        ("a.png", "", ["a.png"]),
        ("  a.png  ", "", ["a.png"]),
        ("What is a.png?", "What is?", ["a.png"]),
        ("Compare a.png with b.JPG, please.", "Compare with, please.", ["a.png", "b.JPG"]),
        ("a.png b.JPG", "", ["a.png", "b.JPG"]),
        ("a.png\nWhat is it?", "What is it?", ["a.png"]),
        ("r.pdf", "", ["r.pdf"]),
        ("Sum up r.pdf#2-4, please.", "Sum up, please.", ["r.pdf#2-4"]),
        ("What happens in clip.MP4#0:10-0:20?", "What happens in?", ["clip.MP4#0:10-0:20"]),
        ("Read a.png#100,20,30,40.", "Read.", ["a.png#100,20,30,40"]),
        ("r#1.pdf", "", ["r#1.pdf"]),
        ("r#1.pdf#3", "", ["r#1.pdf#3"]),
        ("x.pdf#2", "", ["x.pdf#2"]),
        ("./scan#2 what?", "what?", ["./scan#2"]),
        ("https://h/r.pdf#2-4", "", ["https://h/r.pdf#2-4"]),
        ("Is issue #12 in a C#2 file.", "Is issue #12 in a C#2 file.", []),
        ("'my photo.jpg' what is it?", "what is it?", ["my photo.jpg"]),
        ('"my photo.jpg" what is it?', "what is it?", ["my photo.jpg"]),
        ("my\\ photo.jpg what is it?", "what is it?", ["my photo.jpg"]),
        ("my photo.jpg", "", ["my photo.jpg"]),
        ("it\\'s\\ \\(1\\).webp", "", ["it's (1).webp"]),
        ("'it'\\''s (1).webp'", "", ["it's (1).webp"]),
        ('"it\'s (1).webp"', "", ["it's (1).webp"]),
        ("'naïve 写真.heic' who?", "who?", ["naïve 写真.heic"]),
        ("~/a.png", "", ["~/a.png"]),
        ("./a.png and ./sub/c.png", "and", ["./a.png", "./sub/c.png"]),
        ("sub/c.png", "", ["sub/c.png"]),
        ("(see a.png)", "(see)", ["a.png"]),
        ("a.b.png.", "", ["a.b.png"]),
        ("Screenshot\\ 2026-11-23\\ at\\ 9.41.00\\ AM.png", "", ["Screenshot 2026-11-23 at 9.41.00\u202fAM.png"]),
        ("https://example.com/x/y.jpg?size=2 what?", "what?", ["https://example.com/x/y.jpg?size=2"]),
        ("Look: https://example.com/page", "Look: https://example.com/page", []),
        ("What does the .png suffix mean?", "What does the .png suffix mean?", []),
        ("see figure.png in the docs", "see figure.png in the docs", []),
        ("jpeg/png or and/or.png?", "jpeg/png or and/or.png?", []),
        ('I don\'t know what "png" is', 'I don\'t know what "png" is', []),
        ("open notes.txt or folder.png", "open notes.txt or folder.png", []),
        ("f(x) = 'a' + \"b\" \\ n", "f(x) = 'a' + \"b\" \\ n", []),
        ("", "", []),
    ],
)
def test_what_is_a_picture_and_what_is_text(folder: Path, typed: str, text: str, paths: list[str]) -> None:
    found = find_images(typed)
    assert found.text.strip() == text
    assert list(found.paths) == paths


@pytest.mark.parametrize(
    "typed",
    [
        "/nowhere/x.png",
        "what is /nowhere/x.png?",
        "~/gone.jpg",
        "./gone.jpg what?",
        "../gone.webp",
        "'gone photo.jpg' what?",
        '"gone.png"',
        "gone\\ photo.jpg",
        "gone.png",
        "file:///nowhere/x.png",
        "sub/gone.png what?",
        "C:\\Users\\me\\gone.jpg",
        "compare a.png with /nowhere/x.png",
    ],
)
def test_what_can_only_be_a_path_must_be_there(folder: Path, typed: str) -> None:
    with pytest.raises(ImageNotFoundError, match=r"no such picture: .*(gone|/nowhere/x)"):
        find_images(typed)


@pytest.mark.parametrize(
    ("typed", "text", "paths"),
    [
        ("sub/download", "", ["sub/download"]),
        ("What is in sub/download?", "What is in?", ["sub/download"]),
        ("./photo.bin what is it?", "what is it?", ["./photo.bin"]),
        ("~/photo.bin, a.png", "", ["~/photo.bin", "a.png"]),
        ("'photo.bin' what is it?", "what is it?", ["photo.bin"]),
        ("photo.bin", "", ["photo.bin"]),
        ("Is photo.bin a good name?", "Is photo.bin a good name?", []),
        ("What does ./notes.txt say?", "What does ./notes.txt say?", []),
        ("sub/folder and sub/missing", "sub/folder and sub/missing", []),
    ],
)
def test_a_path_of_another_suffix_is_an_image_by_its_content(
    folder: Path, typed: str, text: str, paths: list[str]
) -> None:
    for name in ("sub/download", "photo.bin"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "sub" / "folder").mkdir()
    assert find_images(typed) == DroppedImages(text, tuple(paths))


def test_file_urls(folder: Path) -> None:
    url = "file://" + quote(str(folder / "my photo.jpg"))
    assert find_images(f"{url} what?") == DroppedImages("what?", (str(folder / "my photo.jpg"),))


names = st.text(
    st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp"), blacklist_characters="/\0"), min_size=1, max_size=20
).filter(lambda name: name.strip() == name and not name.startswith(("~", "-")) and name.encode("utf-8", "ignore"))


def backslashed(path: str) -> str:
    """As macOS Terminal and others escape a dropped path."""
    return "".join(c if c.isalnum() or c in "/._-" or (ord(c) > 127 and not c.isspace()) else f"\\{c}" for c in path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names)
def test_any_name_is_found_as_terminals_write_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.png"
    try:
        file.write_bytes(b"x")
    except OSError:
        return
    path = str(file)
    for written in (shlex.quote(path), backslashed(path), "file://" + quote(path)):
        assert find_images(f"{written} what is it?") == DroppedImages("what is it?", (path,)), written
        assert find_images(f"what is {written}").paths == (path,), written
    assert find_images(path).paths == (path,)
    file.unlink()


@pytest.mark.parametrize(
    "typed",
    [")" * 1_000_000 + ".png", '"' + "x" * 10_000_000, "x" * 10_000_000, "a\\ " * 300_000 + ".png", "'" * 100_001],
    ids=["brackets", "a quote", "one word", "escaped blanks", "quotes"],
)
def test_long_texts_stay_text(folder: Path, typed: str) -> None:
    assert find_images(typed) == DroppedImages(typed, ())


def test_a_path_at_the_end_of_a_long_text_is_found(folder: Path) -> None:
    assert find_images("word " * 100_000 + "a.png").paths == ("a.png",)
