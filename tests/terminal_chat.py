"""Drive `mllama` in a pseudo terminal with an emulated window, as a user who types and looks."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pexpect
from ptyprocess import PtyProcess

from tests.console import SCRIPT
from tests.terminal.window import Window

PROMPT = ">>> Ask, or drop a picture here"
PATIENCE = 60
"""Seconds to wait for something to appear: machines differ."""

ENTER, ALT_ENTER, TAB, UP = "\r", "\x1b\r", "\t", "\x1b[A"
CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_R, CTRL_U, CTRL_Z = "\x03", "\x04", "\x07", "\x0a", "\x12", "\x15", "\x1a"
PASTE, END_PASTE = "\x1b[200~", "\x1b[201~"


class Terminal(pexpect.spawn):  # type: ignore[misc]
    """A program in a pseudo terminal, started by `subprocess`, as tests.prepared may have replaced it."""

    def _spawnpty(self, args: list[str], dimensions: tuple[int, int], **how: Any) -> PtyProcess:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, dimensions)
        self._process = subprocess.Popen(
            args, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=how["env"], cwd=how["cwd"]
        )
        os.close(theirs)
        return PtyProcess(self._process.pid, ours)


class TerminalChat:
    """A running `mllama` command with its window. Use as a context manager.

    Unless ``forked``, it starts as slowly as a user's.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str],
        columns: int = 100,
        rows: int = 30,
        program: Path | str = SCRIPT,
        forked: bool = True,
    ) -> None:
        self.window = Window(columns, rows, raw=True)
        # The emulator answers what prompt_toolkit asks the terminal, such as where the cursor is.
        self.window.screen.write_process_input = self.type  # type: ignore[method-assign]
        kind = Terminal if forked and program == SCRIPT and sys.platform == "linux" else pexpect.spawn
        self.process = kind(
            str(program),
            list(arguments),
            cwd=str(cwd),
            env={**os.environ, "TERM": "xterm-256color", **env},
            dimensions=(rows, columns),
            timeout=PATIENCE,
        )
        self.process.delaybeforesend = None

    def __enter__(self) -> "TerminalChat":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close(force=True)

    @property
    def lines(self) -> list[str]:
        return self.window.lines

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def type(self, keys: str) -> None:
        self.process.send(keys.encode())

    def look(self, seconds: float = 0.05) -> None:
        """Read what was written meanwhile, or in the next ``seconds``."""
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            self.window.feed_bytes(self.process.read_nonblocking(65536, timeout=seconds))

    def wait(self, wanted: str | Callable[["TerminalChat"], bool], *, after: int = 0) -> None:
        """Look until ``wanted`` is in the window, after its first ``after`` lines."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.look()
            if wanted(self) if callable(wanted) else wanted in "\n".join(self.lines[after:]):
                return
            if not self.process.isalive():
                self.look()
                break
        raise AssertionError(f"{wanted!r} did not appear:\n{self.text}")

    def at_prompt(self) -> None:
        """Wait until a message can be typed."""
        self.wait(lambda chat: chat.row().startswith((">>>", "...")))

    def row(self) -> str:
        """Return the row of the cursor."""
        return self.window.visible[self.window.screen.cursor.y]

    def typed(self) -> str:
        """Return the row of the cursor together with the one before it, since a long line wraps."""
        row = self.window.screen.cursor.y
        return (self.window.visible[row - 1] if row else "") + self.row().removeprefix("... ")

    def ask(self, text: str) -> str:
        """Send a message or a command, wait for the next prompt, and return what was shown in between."""
        self.at_prompt()
        before = len(self.lines)
        self.type(text)
        self.wait(lambda chat: text[-3:] in chat.typed())
        self.type(ENTER)
        self.wait(lambda chat: len(chat.lines) > before and chat.row() == PROMPT)
        return "\n".join(self.lines[before:-1]).strip("\n")

    def resize(self, columns: int, rows: int) -> None:
        self.window.screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def leave(self, keys: str = "/bye\r") -> int:
        """Leave the chat; return its exit code."""
        self.at_prompt()
        self.type(keys)
        self.process.expect(pexpect.EOF)
        self.process.close()
        return self.process.exitstatus if self.process.exitstatus is not None else -1

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
