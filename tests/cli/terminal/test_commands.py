"""Every slash command in a chat on a terminal."""

import os
from pathlib import Path

import pytest

from tests.terminal_chat import TerminalChat

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")]

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
