"""Key bindings of the chat's prompt that differ from prompt_toolkit's."""

import os
import shutil
from collections.abc import Callable, Sequence

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.filters import is_searching
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys

TRIPLE_QUOTES = '"""'


def is_open(text: str) -> bool:
    """Return whether a message starts with triple quotes that are not closed yet."""
    stripped = text.strip()
    return stripped.startswith(TRIPLE_QUOTES) and (
        len(stripped) < 2 * len(TRIPLE_QUOTES) or not stripped.endswith(TRIPLE_QUOTES)
    )


def without_quotes(text: str) -> str:
    """Remove the triple quotes around a message, ollama's way to write several lines."""
    stripped = text.strip()
    if stripped.startswith(TRIPLE_QUOTES) and not is_open(text):
        return stripped[len(TRIPLE_QUOTES) : -len(TRIPLE_QUOTES)].strip("\n")
    return text


def chat_keys(say: Callable[[str], None], cleared: Callable[[], None]) -> KeyBindings:
    """Bind Enter to send, Alt-Enter and Ctrl-J to new line, Ctrl-G to edit, Ctrl-C to clear.

    ``say`` prints a note; ``cleared`` is called when the line is cleared.
    """
    keys = KeyBindings()
    typing = ~is_searching  # during a search with Ctrl-R these keys end it

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
        cleared()
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


def typed_text(keys: Sequence[KeyPress]) -> str:
    """Return the text that these keys write, a line for each Enter."""
    text = ""
    for press in keys:
        if press.key in (Keys.ControlM, Keys.ControlJ):
            text += "\n"
        elif press.key in (Keys.Backspace, Keys.ControlH):
            text = text[:-1]
        elif press.key == Keys.BracketedPaste or not isinstance(press.key, Keys):
            text += press.data.replace("\r\n", "\n").replace("\r", "\n")
    return text.strip("\n")


def _editor() -> str | None:
    """Return the editor that prompt_toolkit will start, if there is one."""
    candidates = [os.environ.get("VISUAL"), os.environ.get("EDITOR"), "editor", "nano", "pico", "vi", "emacs"]
    for candidate in candidates:
        if candidate and shutil.which(candidate.split()[0]):
            return candidate
    return None
