"""The streams of a command and what they can show. Tests replace it."""

import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TextIO

from rich.console import Console


@dataclass
class Terminal:
    """stdin, stdout and stderr and what is known of each. stdout carries the answer alone, stderr everything else."""

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
        """For tables and other results. Rich leaves ANSI out where stdout is not a terminal and honours NO_COLOR."""
        return Console(file=self.stdout, highlight=False, soft_wrap=not self.stdout_is_tty, width=_width(self.stdout))

    @cached_property
    def err(self) -> Console:
        """For status, progress, notes and errors."""
        return Console(file=self.stderr, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print one line on stderr that scripts see too."""
        self.err.print(text, style="dim", markup=False)

    def error(self, text: str, hint: str = "") -> None:
        """Print a line that says what is wrong, and a second one that says what to do."""
        self.err.print("[bold red]mllama:[/] ", end="")
        self.err.print(text, markup=False)
        if hint:
            self.err.print(hint, style="dim", markup=False)


def _is_tty(stream: TextIO) -> bool:
    # A closed or missing stream (pythonw, `<&-`) is not a terminal.
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _width(stream: TextIO) -> int | None:
    # Piped tables are for grep and cut: never wrapped, neither at a default of 80 columns nor at $COLUMNS.
    return None if _is_tty(stream) else 10_000
