"""`mllama chat` about documents and videos."""

from io import BytesIO
from pathlib import Path

import pytest

from mllama_cli.cli.chat_request import ChatInput
from mllama_cli.cli.question import build_question
from mllama_cli.core.conversation import ImagePart
from mllama_cli.processing.documents import read_images
from mllama_cli.terminal.console import Terminal
from tests.cli.chat.answers import chat
from tests.console import run_here
from tests.documents import DOCUMENTS, needs_pdf, needs_video, pdf_of_pictures

DATA = DOCUMENTS.parent
LETTER, CLIP, GIF = (str(DOCUMENTS / name) for name in ("letter.pdf", "clip.mp4", "clip.gif"))


def asked(*images: str, **options: object) -> tuple[ImagePart, ...]:
    question = ChatInput(words=["What?"], image=list(images), no_stdin=True, **options)  # type: ignore[arg-type]
    return build_question(question, Terminal()).images


@needs_pdf
def test_pages_of_each_document() -> None:
    assert asked(LETTER) == read_images(LETTER)
    assert asked(LETTER, pages="2-3") == read_images(f"{LETTER}#2-3")
    assert asked(f"{LETTER}#1", LETTER, pages="2") == (*read_images(f"{LETTER}#1"), *read_images(f"{LETTER}#2"))
    assert asked(f"{DOCUMENTS}/*ct*d.pdf#1") == read_images(f"{DOCUMENTS}/protected.pdf#1")


@needs_video
def test_frames_of_each_video() -> None:
    assert len(asked(CLIP)) == 8
    assert asked(CLIP, f"{GIF}#all", frames=2) == (*read_images(CLIP, frames=2), *read_images(f"{GIF}#all", frames=2))


@needs_pdf
def test_an_answer_about_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_MODEL", "sketch")
    path = pdf_of_pictures(tmp_path / "drawings.pdf", DATA / "card.png", DATA / "drawing.png")
    question = "Which colour does the star have?"
    for source, stdin in ((f"{path}#2", None), ("-#2", path.read_bytes())):
        assert "yellow" in run_here("chat", "-i", source, question, "--device", "cpu", stdin=stdin).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-i", f"{DATA}/card.png", "--pages", "2"), "--pages is for PDF documents, and there is none"),
        (("-i", f"{DATA}/card.png", "--frames", "2"), "--frames is for videos and animations, and there is none"),
        (("--frames", "2"), "--frames is for videos and animations, and there is none"),
        (("-i", LETTER, "--pages", "x"), "pages must be like 2-4 or 1,3,5, not 'x'"),
        (("-i", CLIP, "--frames", "101"), "--frames must be less than or equal to 100"),
        (("-i", f"{DATA}/card.png#2"), "card.png has 1 page, and no page 2"),
        (("-i", f"{DATA}/nope.pdf#2"), "no such picture"),
        (("-i", f"{DATA}/*.pdf#2"), "no picture matches"),
        ((LETTER + "#2",), "letter.pdf#2 is an image, but it is where the question goes"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = chat(*arguments, "What?")
    assert (result.code, result.out) == (2, "")
    assert message in result.error_lines[0]
    assert len(result.error_lines) == 2


@needs_pdf
def test_an_encrypted_document_is_one_line() -> None:
    result = chat("-i", str(DOCUMENTS / "encrypted.pdf"), "What?")
    assert (result.code, len(result.error_lines)) == (1, 2)
    assert "encrypted.pdf is encrypted" in result.error_lines[0]


@needs_pdf
def test_too_many_pages_say_how_many_fit(tmp_path: Path) -> None:
    from tests.processing.pdf_files import pdf_of

    path = tmp_path / "long.pdf"
    path.write_bytes(pdf_of(101))
    result = chat("-i", str(path), "What?")
    assert "has 101 pages, and one question takes 100 images" in result.error_lines[0]
    assert f"{path}#1-100" in result.error_lines[1]
    assert "takes 97 more images" in chat("-i", LETTER + "#1-3", "-i", str(path), "What?").error_lines[0]


@needs_pdf
def test_messages_may_name_pages(tmp_path: Path) -> None:
    from mllama_cli.processing.messages import parse_messages

    parts = [
        {"type": "image", "path": f"{LETTER}#2-3"},
        {"type": "text", "text": "What?"},
    ]
    images = parse_messages([{"role": "user", "content": parts}]).images
    assert images == read_images(f"{LETTER}#2-3", BytesIO())
