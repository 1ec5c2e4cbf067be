"""The standard streams of a command, and what they can show."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from mllama_cli.core.text import MAX_LINE, one_line, replace_surrogates, strip_control


class SafeConsole(Console):
    """A console on which names, models and servers cannot send escape sequences or forge lines.

    A string, also one in the cell of a table, becomes one line of at most ``line_limit`` characters; a ``Text`` may
    have several lines, but no control characters.
    """

    def __init__(self, *, line_limit: int, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        self._line_limit = line_limit

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(one_line(text, self._line_limit), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else strip_control(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


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
    def out(self) -> Console:
        """For tables and other results, printed as they are: names may look like Rich markup or emoji codes.

        Rich writes no ANSI codes if stdout is not a terminal, and honours NO_COLOR.
        """
        # Piped tables are for grep and cut: never wrapped, neither at a default of 80 columns nor at $COLUMNS.
        piped = not self.stdout_is_tty
        width = PIPED_WIDTH if piped else None
        limit = PIPED_WIDTH // 2 if piped else MAX_LINE
        return SafeConsole(file=self.stdout, soft_wrap=piped, width=width, line_limit=limit)

    @cached_property
    def err(self) -> Console:
        """For status, progress, notes and errors."""
        # On a terminal wrapped at blanks, which the terminal itself does not do; else never.
        return SafeConsole(file=self.stderr, soft_wrap=not self.stderr_is_tty, line_limit=MAX_LINE)

    def result(self, text: str) -> None:
        """Write text to stdout as it is; without control characters if that is a terminal."""
        self.stdout.write(strip_control(text) if self.stdout_is_tty else replace_surrogates(text))
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line to stderr, also if that is not a terminal."""
        self.err.print(text, style="dim")

    def error(self, text: str, hint: str = "") -> None:
        """Print what is wrong, then on a second line what to do about it."""
        line = Text(one_line(f"{PREFIX}{text}"))
        line.stylize("bold red", 0, len(PREFIX))
        self.err.print(line)
        if hint:
            self.err.print(hint, style="dim")


def _is_tty(stream: TextIO) -> bool:
    # A closed or missing stream (pythonw, `<&-`) is not a terminal.
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False
