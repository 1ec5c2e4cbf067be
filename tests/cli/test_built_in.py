"""The built-in model, asked through the command as a newcomer does: answers have to be true."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.console import Result, run_here, run_script

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def fresh_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MLLAMA_MODEL", raising=False)


def ask(question: str, *images: str, stdin: bytes = b"") -> Result:
    pictures = [word for image in images for word in ("--image", image if image == "-" else str(DATA / image))]
    run = run_script if stdin else run_here
    result = run("chat", "-m", "sketch", "--device", "cpu", *pictures, question, stdin=stdin)
    assert (result.code, result.err) == (0, "")
    return result


def test_with_no_model_named_the_built_in_one_answers_and_says_so_on_a_terminal() -> None:
    question = ("chat", "--device", "cpu", "--image", str(DATA / "drawing.png"), "How many circles are there?")
    piped = run_script(*question)
    assert (piped.code, piped.err) == (0, "")
    assert "3" in piped.out
    assert piped.out.count("\n") == 1
    shown = run_here(*question, screen=True)
    assert "built-in" in shown.err
    assert "mllama download 11b" in shown.err


@pytest.mark.parametrize(
    ("question", "image", "answer"),
    [
        ("Which colour does the star have?", "drawing.png", "yellow"),
        ("On which side is the blue square?", "sideways.jpg", "left"),
        ("What does it say?", "card.png", "HELLO"),
    ],
)
def test_a_question_about_a_file(question: str, image: str, answer: str) -> None:
    assert re.search(rf"\b{answer}\b", ask(question, image).out)


def test_a_picture_on_stdin() -> None:
    said = ask("Describe this picture.", "-", stdin=(DATA / "drawing.png").read_bytes()).out
    for thing in ("3 red circles", "blue square", "yellow star"):
        assert thing in said


def test_two_pictures_are_distinguished() -> None:
    assert "purple star was added" in ask("What changed?", "before.png", "after.png").out
    assert "purple star is gone" in ask("What changed?", "after.png", "before.png").out


def test_it_knows_what_it_does_not_know(tmp_path: Path) -> None:
    noise = tmp_path / "noise.png"
    Image.effect_noise((300, 200), 90).save(noise)
    assert "only know simple drawings" in ask("How many circles are there?", str(noise)).out
    assert "only know simple drawings" in ask("What is the capital of France?").out
    assert "mllama-sketch" in ask("Who are you?").out


def test_a_photo_is_not_one_of_its_drawings(shared: Path) -> None:
    assert "only know simple drawings" in ask("What is this?", str(shared / "photos" / "dog.jpg")).out


def test_a_form_without_a_drawing_gets_a_note() -> None:
    chosen = (
        "chat",
        "-m",
        "sketch",
        "--device",
        "cpu",
        "--choice",
        "Yes.",
        "--choice",
        "No.",
        "Is there a red circle?",
    )
    blind = run_here(*chosen)
    assert blind.code == 0
    assert "without an image, an answer that must have a form is made up" in blind.err
    seeing = run_here(*chosen, "--image", str(DATA / "drawing.png"))
    assert (seeing.out, seeing.err) == ("Yes.\n", "")
