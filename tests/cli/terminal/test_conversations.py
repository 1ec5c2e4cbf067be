"""Conversations on a terminal: images, an answer that is stopped, a chat that is resumed, a full context."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from mllama_cli import Conversation, Sampling, Token, load, read_image
from tests.cli.terminal.saved import saved, texts
from tests.terminal_chat import CTRL_C, ENTER, TerminalChat

FOREIGN = Path(__file__).parents[2] / "sketch" / "foreign"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")]


def test_a_photo_on_the_command_line_is_attached_and_asked_about(pictures: Path, env: dict[str, str]) -> None:
    with TerminalChat("chat", "--image", "drawing.png", cwd=pictures, env=env) as chat:
        chat.at_prompt()
        assert "[1 drawing.png]" in chat.text
        assert "▀▀▀▀" in chat.text
        assert "There are 3 circles." in chat.ask("How many circles are there?")
        assert "The star is yellow." in chat.ask("What colour is the star?")
        assert chat.text.count("There are 3 circles.") == 1
        assert chat.text.count("[1 drawing.png]") == 1, "attached to the first question alone"
        assert chat.leave() == 0


def test_a_picture_that_is_dragged_into_the_window(chat: TerminalChat, pictures: Path) -> None:
    odd = pictures / "my card (1).png"
    (pictures / "card.png").rename(odd)
    escaped = str(odd).replace(" ", "\\ ").replace("(", "\\(").replace(")", "\\)")
    chat.ask(escaped)
    assert "[1 my card (1).png]" in chat.text
    assert "HELLO" in chat.ask("What does it say?")
    assert "HELLO" in chat.ask(f"What does it say? '{odd}'")
    missing = chat.ask("/nowhere/photo.jpg what is this?")
    assert "/nowhere/photo.jpg" in missing
    assert "Sorry" not in missing, "nothing was sent"


def test_an_answer_that_is_stopped_stays_and_is_built_upon(pictures: Path, env: dict[str, str]) -> None:
    shutil.copy(FOREIGN / "mixed-five-browser.png", pictures / "five.png")
    with TerminalChat("chat", "--no-preview", "--image", "five.png", cwd=pictures, env=env) as chat:
        # So hot that it babbles for seconds: the small model's own answers are over before anybody can stop them.
        for setting in ("temperature 1000", "seed 3", "max_tokens 1500"):
            chat.ask(f"/set parameter {setting}")
        chat.at_prompt()
        before = len(chat.lines)
        chat.type("List each object and its location." + ENTER)
        chat.wait(lambda chat: len(chat.lines) > before + 1)
        chat.type(CTRL_C)
        chat.wait("Stopped. The answer so far stays in the conversation.")
        chat.ask("/set parameter temperature 0")
        chat.ask("How many stars are there?")
        assert chat.leave() == 0
    first, partial, second, last = texts(saved(env))
    assert (first, second) == ("List each object and its location.", "How many stars are there?")
    assert partial
    talk = Conversation.ask(first, (read_image(pictures / "five.png"),)).with_assistant(partial).with_user(second)
    events = load("sketch", device="cpu").stream(talk, Sampling())
    assert last == "".join(event.text for event in events if isinstance(event, Token))


def test_a_killed_chat_is_resumed_with_its_picture(pictures: Path, env: dict[str, str]) -> None:
    with TerminalChat("chat", "--no-preview", "--image", "drawing.png", cwd=pictures, env=env) as chat:
        chat.ask("Where is the star?")
        chat.kill()
    (pictures / "drawing.png").unlink()
    with TerminalChat("chat", "-c", "--no-preview", cwd=pictures, env=env) as chat:
        chat.at_prompt()
        assert "The star is in the bottom right." in chat.text
        assert "yellow" in chat.ask("And what colour is it?")
        assert "holiday" in chat.ask("/save holiday")
        assert chat.leave() == 0
    assert len(saved(env)) == 4
    with TerminalChat("chat", "--resume", "holiday", "--no-preview", cwd=pictures, env=env) as chat:
        chat.at_prompt()
        assert "yellow" in chat.text
        assert "3 circles" in chat.ask("How many circles are there?")


def asks_again(chat: TerminalChat, after: int) -> bool:
    """Return whether there are more than ``after`` lines, the last of which asks for something."""
    return len(chat.lines) > after and (chat.row().startswith(">>> Ask") or "[o]ldest" in chat.row())


def test_a_context_that_is_full_asks_what_to_do_and_loses_nothing(
    pictures: Path, env: dict[str, str], chat: TerminalChat
) -> None:
    long = pictures / "long.txt"
    long.write_text("word " * 1200)
    for _ in range(2):
        chat.ask("/read long.txt")
        chat.at_prompt()
        before = len(chat.lines)
        chat.type("hello" + ENTER)
        chat.wait(partial(asks_again, after=before))
    assert "[o]ldest" in chat.row()
    chat.type("o" + ENTER)
    chat.wait(lambda c: c.row().startswith(">>> Ask"))
    assert "stays saved" in chat.text
    chat.leave()
    assert len(saved(env, "1")) == 2
    assert len(saved(env, "2")) == 2
