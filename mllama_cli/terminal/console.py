"""The standard streams of a command, and what they can show."""

import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TextIO

from rich.console import Console
from rich.text import Text


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
    def out(self) -> Console:
        """For tables and other results, printed as they are: names may look like Rich markup or emoji codes.

        Rich writes no ANSI codes if stdout is not a terminal, and honours NO_COLOR.
        """
        # Piped tables are for grep and cut: never wrapped, neither at a default of 80 columns nor at $COLUMNS.
        piped = not self.stdout_is_tty
        width = 10_000 if piped else None
        return Console(file=self.stdout, highlight=False, markup=False, emoji=False, soft_wrap=piped, width=width)

    @cached_property
    def err(self) -> Console:
        """For status, progress, notes and errors."""
        # On a terminal wrapped at blanks, which the terminal itself does not do; else never.
        return Console(file=self.stderr, highlight=False, markup=False, emoji=False, soft_wrap=not self.stderr_is_tty)

    def note(self, text: str) -> None:
        """Print a line to stderr, also if that is not a terminal."""
        self.err.print(text, style="dim")

    def error(self, text: str, hint: str = "") -> None:
        """Print what is wrong, then on a second line what to do about it."""
        self.err.print(Text.assemble(("mllama: ", "bold red"), text))
        if hint:
            self.err.print(hint, style="dim")


def _is_tty(stream: TextIO) -> bool:
    # A closed or missing stream (pythonw, `<&-`) is not a terminal.
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False
