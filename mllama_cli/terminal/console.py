"""The standard streams of a command, and what they can show.

Rich is imported only for what is shown on a terminal or laid out: a short answer from a model in memory would wait
longer for the import than for the model.
"""

import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TextIO

from mllama_cli.core.text import MAX_LINE, one_line, replace_surrogates, strip_control

if TYPE_CHECKING:
    from rich.console import Console


PIPED_WIDTH = 10_000
PREFIX = "mllama: "
"""What the line of an error begins with."""


@dataclass
class Terminal:
    """stdin, stdout and stderr. stdout carries only the answer, stderr everything else."""

    stdin: TextIO = field(default_factory=lambda: sys.stdin)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    @property
    def stdin_is_tty(self) -> bool:
        return _is_tty(self.stdin)

    @property
    def stdout_is_tty(self) -> bool:
        return _is_tty(self.stdout)

    @property
    def stderr_is_tty(self) -> bool:
        return _is_tty(self.stderr)

    @cached_property
    def out(self) -> "Console":
        """For tables and other results, printed as they are: names may look like Rich markup or emoji codes.

        Rich writes no ANSI codes if stdout is not a terminal, and honours NO_COLOR.
        """
        from mllama_cli.terminal.safe_console import SafeConsole

        # Piped tables are for grep and cut: never wrapped, neither at a default of 80 columns nor at $COLUMNS.
        piped = not self.stdout_is_tty
        width = PIPED_WIDTH if piped else None
        limit = PIPED_WIDTH // 2 if piped else MAX_LINE
        return SafeConsole(file=self.stdout, soft_wrap=piped, width=width, line_limit=limit)

    @cached_property
    def err(self) -> "Console":
        """For status, progress, notes and errors."""
        from mllama_cli.terminal.safe_console import SafeConsole

        # On a terminal wrapped at blanks, which the terminal itself does not do; else never.
        return SafeConsole(file=self.stderr, soft_wrap=not self.stderr_is_tty, line_limit=MAX_LINE)

    def result(self, text: str) -> None:
        """Write text to stdout as it is; without control characters if that is a terminal."""
        self.stdout.write(strip_control(text) if self.stdout_is_tty else replace_surrogates(text))
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line to stderr, also if that is not a terminal."""
        if self.stderr is None or self.stderr_is_tty or "FORCE_COLOR" in os.environ:
            self.err.print(text, style="dim")
        else:
            self._line(text)

    def error(self, text: str, hint: str = "") -> None:
        """Print what is wrong, then on a second line what to do about it."""
        if self.stderr is not None and not self.stderr_is_tty and "FORCE_COLOR" not in os.environ:
            self._line(f"{PREFIX}{text}", *filter(None, [hint]))
            return
        from rich.text import Text

        line = Text(one_line(f"{PREFIX}{text}"))
        line.stylize("bold red", 0, len(PREFIX))
        self.err.print(line)
        if hint:
            self.err.print(hint, style="dim")

    def _line(self, *texts: str) -> None:
        """Write lines to stderr as ``err`` does where it is not a terminal."""
        self.stderr.write("".join(f"{one_line(text)}\n" for text in texts))
        self.stderr.flush()


def _is_tty(stream: TextIO) -> bool:
    # A closed or missing stream (pythonw, `<&-`) is not a terminal.
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False
