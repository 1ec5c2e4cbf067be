"""The interactive chat as a person has it: on a terminal, with the built-in model, which answers truly."""

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllama_cli import Conversation, Sampling, Token, load, read_image
from tests.console import SCRIPT, run_script
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

DATA = Path(__file__).parents[1] / "data"
FOREIGN = Path(__file__).parents[1] / "sketch" / "foreign"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {
        "MLLAMA_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "MLLAMA_NOHISTORY": "",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("drawing.png", "card.png"):
        shutil.copy(DATA / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def engine_folder() -> Iterator[str]:
    """A folder where chats find an engine with the built-in model, so that they need not load it."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:
        names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "MLLAMA_HOME", "HF_HUB_CACHE")
        env = {"OMP_NUM_THREADS": "1", "MLLAMA_CONFIG": f"{folder}/none", **dict.fromkeys(names, folder)}
        asked = run_script("chat", "-m", "sketch", "--keep-alive", "10m", "--max-tokens", "1", "Hi", env=env)
        assert asked.code == 0, asked.err
        yield folder
        run_script("stop", "--all", env=env)


@pytest.fixture
def served(env: dict[str, str], engine_folder: str) -> dict[str, str]:
    """The environment of a chat whose answers that engine gives."""
    return {**env, "XDG_RUNTIME_DIR": engine_folder}


@pytest.fixture
def chat(pictures: Path, served: dict[str, str]) -> Iterator[TerminalChat]:
    with TerminalChat("chat", "--no-preview", cwd=pictures, env=served) as running:
        running.at_prompt()
        yield running


def saved(env: dict[str, str], name: str = "1") -> list[dict[str, object]]:
    done = subprocess.run(
        [SCRIPT, "history", "show", name, "--json"], env={**os.environ, **env}, capture_output=True, check=True
    )
    result: list[dict[str, object]] = json.loads(done.stdout)["messages"]
    return result


def texts(messages: list[dict[str, object]]) -> list[str]:
    """What was said, pictures left out."""
    said = []
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        said.append("".join(part.get("text", "") for part in parts))
    return said


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
        chat.wait(lambda c, n=before: len(c.lines) > n and (c.row().startswith(">>> Ask") or "[o]ldest" in c.row()))  # type: ignore[misc]
    assert "[o]ldest" in chat.row()
    chat.type("o" + ENTER)
    chat.wait(lambda c: c.row().startswith(">>> Ask"))
    assert "stays saved" in chat.text
    chat.leave()
    assert len(saved(env, "1")) == 2
    assert len(saved(env, "2")) == 2


COMMANDS = [
    ("/?", "/image PATH|URL"),
    ("/image nothing.png", "nothing.png"),
    ("/image drawing.png", "Attached drawing.png 640x480, 4 tiles"),
    ("/images", "1. drawing.png"),
    ("/detach 7", "needs a number from 1 to 1"),
    ("/detach 1", "Detached drawing.png"),
    ("/preview", "There is no image to show"),
    ("/regen", "nothing was asked yet"),
    ("/undo", "nothing was asked yet"),
    ("/copy", "no answer to copy"),
    ("/export x.md", "still empty"),
    ("/image card.png", "Attached card.png"),
    ("What does it say?", "HELLO"),
    ("/images", "card.png (in the conversation)"),
    ("/preview off", "Previews are off"),
    ("/copy", "Copied the answer (16 characters)"),
    ("/copy code", "has no code block"),
    ("/regen", "It says"),
    ("/set parameter num_predict 3", "max_tokens = 3"),
    ("What colour is the text?", "The answer was cut at 3 tokens"),
    ("/undo", "Removed: What colour is the text?"),
    ("/redo", "Restored: What colour is the text?"),
    ("/undo", "Removed: What colour is the text?"),
    ("/set parameter repeat_penalty 1.1", "repetition_penalty = 1.1"),
    ("/set parameter temperature hot", "temperature must be a number"),
    ("/set parameter num_ctx 4096", "The context size is the model's: 2048"),
    ("/set parameter warmth 1", "There is no parameter 'warmth'"),
    ("/set verbose", "Statistics after each answer: yes"),
    ("hello", "tokens/s"),
    ("/set", "/set needs a setting"),
    ("/system Be brief.", "System message set."),
    ("/system", "Be brief."),
    ("/model", "1.  sketch"),
    ("/help set", "theme"),
    ("/show", "tokens used"),
    ("/save", "needs a name"),
    ("/save cards", "Saved as cards"),
    ("/history", "cards"),
    ("/export talk.md", "Wrote talk.md"),
    ("/export talk.txt", "neither .md nor .json"),
    ("/read nothing.txt", "cannot be read"),
    ("/read card.png", "is not UTF-8 text"),
    ("/clear", "New conversation."),
    ("/load nowhere", "nowhere"),
    ("/load cards", "Continuing cards"),
    ("/model nowhere", "There is no model or folder called 'nowhere'"),
    ("/model sketch", "Now talking to sketch."),
    ("/imgae x", "Did you mean /image?"),
]


def test_every_command_with_good_and_bad_arguments(chat: TerminalChat, pictures: Path) -> None:
    for line, answer in COMMANDS:
        shown = chat.ask(line)
        assert answer in shown, f"{line}:\n{shown}"
    assert (pictures / "talk.md").read_text().startswith("# ")
    assert chat.leave("/exit\r") == 0
