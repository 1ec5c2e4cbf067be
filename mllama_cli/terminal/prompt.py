"""The chat's prompt, by prompt_toolkit: several lines, history, completion, an editor."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.styles import Style

from mllama_cli.terminal.completer import ChatCompleter, CommandHelp
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.keys import chat_keys, without_quotes
from mllama_cli.terminal.line_history import PrivateHistory

PLACEHOLDER = "Ask anything, /? for help"
PROMPT_STYLE = Style.from_dict({"chip": "reverse", "placeholder": "ansibrightblack", "hint": "ansibrightblack"})


class ChatPrompt:
    """Asks for messages.

    Args:
        history_file: where typed messages are saved; None keeps them only in memory.
        commands: the slash commands that Tab completes.
        complete_models, complete_chats: return the names that Tab completes after a command that takes them.
        source, sink: replace the terminal in tests.
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        history_file: Path | None,
        commands: Sequence[CommandHelp],
        complete_models: Callable[[], Sequence[str]],
        complete_chats: Callable[[], Sequence[str]],
        source: Input | None = None,
        sink: Output | None = None,
    ) -> None:
        self._terminal = terminal
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        history: History = InMemoryHistory()
        if history_file is not None:
            history = PrivateHistory(history_file, on_error=terminal.note)
        if editor := os.environ.get("MLLAMA_EDITOR"):
            os.environ["VISUAL"] = editor  # which prompt_toolkit tries first
        self._session: PromptSession[str] = PromptSession(
            history=history,
            key_bindings=chat_keys(terminal.note),
            completer=ChatCompleter(commands, complete_models, complete_chats),
            complete_while_typing=False,
            complete_in_thread=True,
            multiline=True,
            enable_open_in_editor=False,
            tempfile_suffix=".md",
            placeholder=[("class:placeholder", PLACEHOLDER)],
            style=PROMPT_STYLE,
            color_depth=ColorDepth.DEPTH_1_BIT if plain else None,
            prompt_continuation=[("class:hint", "... ")],
            reserve_space_for_menu=6,
            input=source,
            output=sink,
        )

    def ask(self, chips: Sequence[str], default: str = "") -> str:
        """Return the next non-empty message; ``chips`` are attached images. Raise EOFError when the user leaves."""
        while True:
            try:
                text = self._session.prompt(self._prompt(chips), default=default)
            except KeyboardInterrupt:
                self._terminal.note("Ctrl-D or /bye leaves.")
                default = ""
                continue
            default = ""
            text = without_quotes(text)
            if text.strip():
                return text

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

    def _prompt(self, chips: Sequence[str]) -> StyleAndTextTuples:
        shown: StyleAndTextTuples = []
        for chip in chips:
            shown += [("class:chip", f"[{chip}]"), ("", " ")]
        return [*shown, *([("", "\n")] if chips else []), ("bold", ">>> ")]
