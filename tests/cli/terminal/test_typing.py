"""Typing in a chat on a terminal: keys, several lines, what is pasted or typed ahead, history and completion."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.cli.terminal.saved import saved, texts
from tests.console import SCRIPT
from tests.terminal_chat import (
    ALT_ENTER,
    CTRL_C,
    CTRL_D,
    CTRL_G,
    CTRL_J,
    CTRL_R,
    CTRL_Z,
    END_PASTE,
    ENTER,
    PASTE,
    PROMPT,
    TAB,
    UP,
    TerminalChat,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")]


def test_ctrl_c_at_an_empty_prompt_hints_and_ctrl_d_leaves(chat: TerminalChat) -> None:
    chat.type("some text")
    chat.wait("some text")
    chat.type(CTRL_C)
    chat.wait(lambda c: "some text" not in c.row())
    chat.type(CTRL_C)
    chat.wait("Ctrl-D or /bye leaves.")
    assert chat.leave(CTRL_D) == 0


def test_what_is_typed_ahead_is_sent_line_by_line(pictures: Path, env: dict[str, str]) -> None:
    with TerminalChat("chat", "--no-preview", cwd=pictures, env=env, forked=False) as chat:
        chat.wait("Starting")
        chat.type(f"drawing.png How many circles are there?{ENTER}Where is the star?{ENTER}/copy{ENTER}/sys")
        chat.wait("Copied the answer")
        chat.wait(lambda c: c.row() == ">>> /sys")
        for text in ("How many circles", "Where is the star?", "/copy"):
            (line,) = (line for line in chat.lines if text in line)
            assert line.startswith(">>> "), "it stands at the prompt and nowhere else"
        chat.type(CTRL_C)
        assert chat.leave() == 0
    assert texts(saved(env))[::2] == ["How many circles are there?", "Where is the star?"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_ctrl_z_suspends_at_the_prompt(pictures: Path, env: dict[str, str]) -> None:
    shell = TerminalChat("--norc", "--noprofile", "-i", cwd=pictures, env={**env, "PS1": "$ "}, program="bash")
    with shell as chat:
        chat.type(f"{SCRIPT} chat{ENTER}")
        chat.at_prompt()
        chat.type(CTRL_Z)
        chat.wait("Stopped")
        chat.type(f"echo $((40 + 2)) in the shell{ENTER}")
        chat.wait("42 in the shell")
        chat.type(f"fg{ENTER}")
        chat.wait(lambda c: c.row() == PROMPT)
        chat.type(f"hello{ENTER}")
        chat.wait("Hello!")


def test_several_lines(chat: TerminalChat, env: dict[str, str]) -> None:
    chat.type(f"one{ALT_ENTER}two{CTRL_J}three{ENTER}")
    chat.wait("Sorry, I only know")
    chat.at_prompt()
    before = len(chat.lines)
    chat.type(f'"""four{ENTER}five{ENTER}"""{ENTER}')
    chat.wait(lambda c: len(c.lines) > before + 2 and c.row() == PROMPT)
    chat.leave()
    assert texts(saved(env))[::2] == ["one\ntwo\nthree", "four\nfive"]


def test_a_pasted_text_of_5000_lines_arrives_whole_and_waits(pictures: Path, served: dict[str, str]) -> None:
    pasted = "\n".join(f"line {number} of what was pasted" for number in range(5000))
    editor = pictures / "editor"
    editor.write_text(f'#!/bin/sh\ncp "$1" "{pictures}/seen.md"\n')
    editor.chmod(0o755)
    with TerminalChat("chat", cwd=pictures, env={**served, "VISUAL": str(editor)}) as chat:
        chat.at_prompt()
        chat.type(PASTE + pasted.replace("\n", "\r") + END_PASTE)
        chat.wait("line 4999 of what was pasted")
        chat.type(CTRL_G)
        chat.wait(lambda _: (pictures / "seen.md").exists() and (pictures / "seen.md").stat().st_size >= len(pasted))
        assert (pictures / "seen.md").read_text().rstrip("\n") == pasted
        chat.type(ENTER)  # far too long for the model
        chat.wait("5000 lines, not sent yet")
        chat.type(CTRL_C)
        chat.wait(lambda c: "5000 lines" not in c.text and c.row() == PROMPT)
        assert "Hello" in chat.ask("hello")
        assert chat.leave() == 0


def test_a_window_that_is_resized(chat: TerminalChat) -> None:
    chat.ask("/image drawing.png")
    for columns, rows in ((60, 20), (40, 12), (100, 40)):
        chat.resize(columns, rows)
        assert "There are 3 circles." in chat.ask("How many circles are there?")
    assert chat.leave() == 0


def test_typed_lines_are_remembered_privately(pictures: Path, served: dict[str, str]) -> None:
    with TerminalChat("chat", cwd=pictures, env=served) as chat:
        chat.ask("Who are you?")
        chat.ask("hello")
        chat.leave()
    (file,) = (path for path in (pictures / "state").rglob("*") if path.is_file() and "cold-start" not in path.name)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with TerminalChat("chat", cwd=pictures, env=served) as chat:
        chat.at_prompt()
        chat.type(UP * 3)
        chat.wait(lambda c: c.row() == ">>> Who are you?")
        chat.type(ENTER)
        chat.wait("I am mllama-sketch")
        chat.at_prompt()
        chat.type(f"{CTRL_R}hel")
        chat.wait(lambda c: "hello" in c.text.split("mllama-sketch")[-1])
        chat.type(ENTER)
        chat.type(ENTER)
        chat.wait("Hello!")
        chat.leave()
    file.unlink()
    with TerminalChat("chat", cwd=pictures, env={**served, "MLLAMA_NOHISTORY": "1"}) as chat:
        chat.ask("hello")
        chat.leave()
    assert not file.exists()


def test_tab_completes_commands_paths_and_models(chat: TerminalChat) -> None:
    chat.type(f"/im{TAB}")
    chat.wait(lambda c: "/image" in c.row())
    chat.type(CTRL_C + f"/image dra{TAB}")
    chat.wait(lambda c: c.row().startswith(">>> /image drawing.png"))
    chat.type(CTRL_C + f"/model sk{TAB}")
    chat.wait(lambda c: c.row().startswith(">>> /model sketch"))
    chat.type(CTRL_C + f"What is in ./car{TAB}")
    chat.wait(lambda c: c.row().startswith(">>> What is in ./card.png"))
    chat.type(CTRL_C)
