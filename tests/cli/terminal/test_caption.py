"""`mllama caption` as a person sees it, on a terminal."""

import os
import shutil
from pathlib import Path

import pexpect
import pytest

from tests.console import SCRIPT
from tests.terminal_chat import CTRL_C, TerminalChat

DATA = Path(__file__).parents[2] / "data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("drawing.png", "card.png", "before.png"):
        shutil.copy(DATA / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def many(folder: Path) -> Path:
    """A folder of pictures that take a while."""
    for number in range(14):
        shutil.copy(DATA / "card.png", folder / f"{number}.png")
        with (folder / f"{number}.png").open("ab") as file:
            file.write(bytes([number]))  # other content, so that each is looked at
    return folder


def caption(folder: Path, *options: str) -> TerminalChat:
    env = {"OMP_NUM_THREADS": "1", "MLLAMA_HOME": str(folder / "home"), "COLORTERM": "truecolor"}
    return TerminalChat("caption", "-m", "sketch", *options, cwd=folder, env=env)


def test_with_preview_each_caption_stays_under_its_picture(folder: Path) -> None:
    with caption(folder, ".", "--preview") as run:
        run.wait("Captioned 3")
        run.process.expect(pexpect.EOF)
        captions = [i for i, line in enumerate(run.lines) if line.startswith(("drawing.png: ", "card.png: "))]
        assert len(captions) == 2
        assert all(run.lines[place - 1].startswith("▀▀▀") for place in captions)
        assert "drawing.png: I see 3 red circles, a blue square and a yellow star." in run.text
        assert "━" not in run.text, "the bar is gone"


def test_what_is_typed_meanwhile_is_left_to_the_shell_and_not_echoed(many: Path) -> None:
    env = {"OMP_NUM_THREADS": "1", "MLLAMA_HOME": str(many / "home"), "PS1": "$ ", "TERM": "xterm-256color"}
    shell = shutil.which("bash") or "sh"
    with TerminalChat("--norc", "-i", cwd=many, env=env, program=shell) as run:
        run.wait("$")
        run.type(f"{SCRIPT} caption -m sketch . --batch-size 1\r")
        run.wait("Starting")
        run.type("echo typed-$((1 + 1))\r")
        run.wait("images/s")
        run.type("echo typed-$((2 + 2))\r")
        run.wait("typed-4")
        assert "typed-2" in run.text
        assert "typed-$" not in run.text[: run.text.index("Captioned 17")], "not echoed into the bar"


def test_a_bar_with_the_last_caption_and_ctrl_c(many: Path) -> None:
    os.mkfifo(many / "z.png")  # an image that never comes, so that the run cannot end before
    with caption(many, ".", "--batch-size", "1") as run:
        run.wait("images/s")
        run.wait("HELLO")
        run.type(CTRL_C)
        run.wait("Run the same command to resume.")
        assert "Captioned " in run.text
    assert list(many.glob("*.txt"))
    assert not list(many.glob(".*.mllama"))
