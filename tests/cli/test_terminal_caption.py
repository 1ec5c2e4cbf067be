"""`mllama caption` as a person sees it, on a terminal."""

import os
import shutil
from pathlib import Path

import pexpect
import pytest

from tests.terminal_chat import CTRL_C, TerminalChat

DATA = Path(__file__).parents[1] / "data"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("drawing.png", "card.png", "before.png"):
        shutil.copy(DATA / name, tmp_path / name)
    return tmp_path


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


def test_a_bar_with_the_last_caption_and_ctrl_c(folder: Path) -> None:
    for number in range(30):
        shutil.copy(DATA / "card.png", folder / f"{number}.png")
        with (folder / f"{number}.png").open("ab") as file:
            file.write(bytes([number]))  # other content, so that each is looked at
    with caption(folder, ".", "--batch-size", "1") as run:
        run.wait("images/s")
        run.wait("HELLO")
        run.type(CTRL_C)
        run.wait("Run the same command to resume.")
        assert "Captioned " in run.text
    assert list(folder.glob("*.txt"))
    assert not list(folder.glob(".*.mllama"))
