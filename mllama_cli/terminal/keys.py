"""What keys do while a message is typed, where that is not prompt_toolkit's default."""

import os
import shutil
from collections.abc import Callable

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.filters import is_searching
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Return whether a message began with triple quotes that are not closed yet."""
    stripped = text.strip()
    return stripped.startswith(QUOTES) and (len(stripped) < 2 * len(QUOTES) or not stripped.endswith(QUOTES))


def without_quotes(text: str) -> str:
    """Return a message without the triple quotes around it, between which ollama's users write several lines."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and not is_open(text):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def chat_keys(say: Callable[[str], None]) -> KeyBindings:
    """Bind Enter to send, Alt-Enter and Ctrl-J to a new line, Ctrl-G to edit, Ctrl-C to clear; ``say`` shows a line."""
    keys = KeyBindings()
    typing = ~is_searching  # while Ctrl-R searches, these keys end the search

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # accepts what is selected in the menu
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    @keys.add("c-j", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=typing)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            run_in_terminal(lambda: say("Ctrl-D or /bye leaves."))

    @keys.add("c-g", filter=typing)
    def _(event: KeyPressEvent) -> None:
        if _editor() is None:
            run_in_terminal(lambda: say("No editor found: set VISUAL or EDITOR."))
        else:
            event.current_buffer.open_in_editor()

    return keys


def _editor() -> str | None:
    """Return the program that prompt_toolkit will start, if it exists."""
    candidates = [os.environ.get("VISUAL"), os.environ.get("EDITOR"), "editor", "nano", "pico", "vi", "emacs"]
    for candidate in candidates:
        if candidate and shutil.which(candidate.split()[0]):
            return candidate
    return None
