"""The chat's prompt, by prompt_toolkit: several lines, history, completion, an editor."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from mllama_cli.terminal.completer import ChatCompleter, CommandHelp
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.keys import chat_keys, typed_text, without_quotes
from mllama_cli.terminal.line_history import PrivateHistory
from mllama_cli.terminal.type_ahead import TypeAhead

PLACEHOLDER = "Ask, or drop a picture here"
MAX_CHIP_ROWS = 3
PROMPT_STYLE = Style.from_dict(
    {"chip": "reverse", "placeholder": "ansibrightblack", "hint": "ansibrightblack", "bottom-toolbar": "noreverse"}
)


class ChatPrompt:
    """Asks for messages.

    Args:
        history_file: where typed messages are saved; None keeps them only in memory.
        commands: the slash commands that Tab completes.
        complete_models, complete_chats: return the names that Tab completes after a command that takes them.
        type_ahead: keeps what is typed while there is no prompt.
        source, sink: replace the terminal in tests.

    Attributes:
        cleared: whether Ctrl-C cleared the line since the last ``ask`` began.
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        history_file: Path | None,
        commands: Sequence[CommandHelp],
        complete_models: Callable[[], Sequence[str]],
        complete_chats: Callable[[], Sequence[str]],
        type_ahead: TypeAhead | None = None,
        source: Input | None = None,
        sink: Output | None = None,
    ) -> None:
        self._terminal = terminal
        self._type_ahead = type_ahead
        self.cleared = False
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        history: History = InMemoryHistory()
        if history_file is not None:
            history = PrivateHistory(history_file, on_error=terminal.note)
        if editor := os.environ.get("MLLAMA_EDITOR"):
            os.environ["VISUAL"] = editor  # which prompt_toolkit tries first
        self._session: PromptSession[str] = PromptSession(
            history=history,
            key_bindings=chat_keys(terminal.note, self._note_cleared),
            completer=ChatCompleter(commands, complete_models, complete_chats),
            complete_while_typing=False,
            complete_in_thread=True,
            multiline=True,
            enable_open_in_editor=False,
            enable_suspend=True,
            tempfile_suffix=".md",
            placeholder=None if plain else _placeholder,  # without colours it would look like typed text
            style=PROMPT_STYLE,
            color_depth=ColorDepth.DEPTH_1_BIT if plain else None,
            prompt_continuation=[("class:hint", "... ")],
            reserve_space_for_menu=6,
            input=source,
            output=sink,
        )

    def ask(self, chips: Sequence[str], default: str = "") -> str:
        """Return the next non-empty message; ``chips`` are what is attached. Raise EOFError when the user leaves."""
        self.cleared = False
        self._session.bottom_toolbar = _about_long(default, self._session.output.get_size().rows)
        if self._type_ahead is not None:
            store_typeahead(self._session.input, _keys(self._type_ahead.take()))
        while True:
            try:
                text = self._session.prompt(lambda: _prompt(chips), default=default)
            except KeyboardInterrupt:
                self.cleared = True
                self._terminal.note("Ctrl-D or /bye leaves.")
                default = ""
                continue
            default = ""
            text = without_quotes(text)
            if text.strip():
                return text

    def drop_queue(self) -> str:
        """Return what was typed ahead as text, and do not send it."""
        keys = get_typeahead(self._session.input)
        return typed_text(keys + _keys(self._type_ahead.take() if self._type_ahead is not None else ""))

    def choose(self, question: str, choices: str) -> str:
        """Return one of the letters ``choices``; the last one for Enter, Ctrl-C or Ctrl-D."""
        session: PromptSession[str] = PromptSession(input=self._session.input, output=self._session.output)
        while True:
            try:
                answer = session.prompt(f"{question} ").strip().lower()
            except (KeyboardInterrupt, EOFError):
                return choices[-1]
            if not answer:
                return choices[-1]
            if answer[0] in choices:
                return answer[0]

    def _note_cleared(self) -> None:
        self.cleared = True
        self._session.bottom_toolbar = None


def _about_long(draft: str, rows: int) -> str | None:
    """Return what to say below a draft that fills the window and hides any message above it; None below others."""
    lines = draft.count("\n") + 1
    if lines < rows - 4:
        return None
    return f"{lines} lines, not sent yet (messages are above). Ctrl-G: editor. Ctrl-C: clear."


def _placeholder() -> StyleAndTextTuples:
    return [] if is_searching() else [("class:placeholder", PLACEHOLDER)]


def _prompt(chips: Sequence[str]) -> StyleAndTextTuples:
    shown: StyleAndTextTuples = []
    for row in chip_rows(chips, get_app().output.get_size().columns - 1):
        for chip in row:
            shown += [("class:chip", chip), ("", " ")]
        shown.append(("", "\n"))
    return [*shown, ("bold", ">>> ")]


def chip_rows(chips: Sequence[str], width: int) -> list[list[str]]:
    """Return numbered chips in rows of at most ``width`` cells; if there are too many rows, how many chips are left.

    >>> chip_rows(["a.png", "b.png", "c.png"], 20)
    [['[1 a.png]', '[2 b.png]'], ['[3 c.png]']]
    """
    rows: list[list[str]] = [[]]
    for number, name in enumerate(chips, 1):
        rest = len(chips) - number
        reserved = len(f" +{rest} more") if rest else 0  # in the last row
        chip = _cut(f"[{number} {name}]", width)
        used = sum(get_cwidth(each) + 1 for each in rows[-1])
        if used and used + get_cwidth(chip) > width - reserved * (len(rows) == MAX_CHIP_ROWS):
            if len(rows) == MAX_CHIP_ROWS:
                rows[-1].append(f"+{rest + 1} more")
                return rows
            rows.append([])
        if not rows[-1] and len(rows) == MAX_CHIP_ROWS:
            chip = _cut(chip, width - reserved)
        rows[-1].append(chip)
    return rows if chips else []


def _cut(chip: str, width: int) -> str:
    while get_cwidth(chip) > max(width, 8):
        chip = chip[: -3 if chip.endswith("…]") else -2] + "…]"
    return chip


def _keys(typed: str) -> list[KeyPress]:
    """Return the keys that a terminal sends as this text."""
    keys: list[KeyPress] = []
    parser = Vt100Parser(keys.append)
    parser.feed_and_flush(typed)
    return keys
