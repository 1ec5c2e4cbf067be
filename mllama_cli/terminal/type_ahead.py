"""What is typed while there is no prompt: kept unseen for the next prompt, apart from the terminal's own answers."""

import contextlib
import os
import re
import select
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from mllama_cli.terminal.console import Terminal

ANSWER_SECONDS = 0.1
"""How long to wait for the terminal to answer a question."""

_ASK_BACKGROUND = "\x1b]11;?\x1b\\"
_BACKGROUND = re.compile(r"\x1b\]11;rgba?:([0-9a-fA-F]+)/([0-9a-fA-F]+)/([0-9a-fA-F]+)[^\x07\x1b]*(?:\x07|\x1b\\)")
_NO_QUERIES = ("", "dumb", "linux")
"""Values of TERM for terminals that do not answer, and may print what they are asked."""


class TypeAhead:
    """Turns the terminal's echo off, and keeps Enter as it was typed. Use as a context manager around all prompts.

    With echo, typed text would appear inside the answer or a bar; in the terminal's line mode, Enter would reach the
    prompt as Ctrl-J, which begins a new line. Does nothing if stdin is not a terminal.

    Args:
        prompts: whether a prompt follows. If not, what is typed is left to the shell, as it is: only the echo goes.
    """

    def __init__(self, terminal: Terminal, *, prompts: bool = True) -> None:
        self._terminal = terminal
        self._prompts = prompts
        self._file = -1
        self._before: list[Any] | None = None
        self._handler: Any = None
        self._asked = 0.0
        self._typed = ""

    def __enter__(self) -> "TypeAhead":
        if self._is_ours():
            import termios

            self._before = termios.tcgetattr(self._file)
            self._set_quiet()
            if self._prompts:
                # It went through the line mode, where Enter and Ctrl-J are the same: Enter was meant.
                self._typed = self._pending().replace("\n", "\r")
            self._handler = signal.signal(signal.SIGTSTP, self._suspend)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTSTP, self._handler)
            self._restore()
            self._before = None

    def ask_background(self) -> None:
        """Ask the terminal for its background colour; ``background`` reads the answer."""
        term = os.environ.get("TERM", "")
        if self._before is not None and self._terminal.stdout_is_tty and term not in _NO_QUERIES:
            self._terminal.stdout.write(_ASK_BACKGROUND)
            self._terminal.stdout.flush()
            self._asked = time.monotonic()

    def background(self) -> str:
        """Return "light" or "dark" if the terminal says so, itself or in COLORFGBG; "" if it is unknown."""
        while self._asked:
            self._typed += self._pending()
            if match := _BACKGROUND.search(self._typed):
                self._typed = self._typed[: match.start()] + self._typed[match.end() :]
                return _lightness(match.groups())
            left = self._asked + ANSWER_SECONDS - time.monotonic()
            if left <= 0:
                break
            select.select([self._file], [], [], left)
        colours = os.environ.get("COLORFGBG", "").split(";")
        if len(colours) > 1 and colours[-1].isdigit():
            return "light" if int(colours[-1]) in (7, *range(9, 16)) else "dark"
        return ""

    def take(self) -> str:
        """Return, once, what was typed so far."""
        typed, self._typed = self._typed + self._pending(), ""
        return typed

    def _is_ours(self) -> bool:
        """Return whether stdin is a terminal whose settings this process may change now."""
        if os.name != "posix" or not self._terminal.stdin_is_tty:
            return False
        try:
            self._file = self._terminal.stdin.fileno()
            return os.tcgetpgrp(self._file) == os.getpgrp()
        except (OSError, ValueError):
            return False

    def _set_quiet(self) -> None:
        import termios

        settings = termios.tcgetattr(self._file)
        settings[3] &= ~(termios.ECHO | termios.ECHONL)
        settings[3] |= termios.ISIG | termios.NOFLSH  # Ctrl-C interrupts without throwing away what was typed
        if self._prompts:
            settings[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR)
            settings[3] &= ~(termios.ICANON | termios.IEXTEN)
            settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._file, termios.TCSANOW, settings)

    def _restore(self) -> None:
        import termios

        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            termios.tcsetattr(self._file, termios.TCSANOW, self._before or [])

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Stop as Ctrl-Z does, with the terminal as the shell wants it in the meantime."""
        self._restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._suspend)
        self._set_quiet()

    def _pending(self) -> str:
        if self._before is None:
            return ""
        data = b""
        while select.select([self._file], [], [], 0)[0]:
            try:
                piece = os.read(self._file, 4096)
            except OSError:
                break
            if not piece:
                break
            data += piece
        return data.decode("utf-8", "replace")


def _lightness(colour: tuple[str, ...]) -> str:
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in colour)
    return "light" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "dark"
