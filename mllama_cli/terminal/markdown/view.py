"""Draw streaming Markdown: finished blocks are printed once, only the open block is redrawn."""

import shutil
from time import monotonic

from rich.text import Text

from mllama_cli.core.text import strip_control
from mllama_cli.terminal.answer_view import AnswerWriter
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.markdown.blocks import block_lines, split_finished
from mllama_cli.terminal.markdown.theme import markdown_theme

FRAME_SECONDS = 1 / 15
"""Shortest time between two drawings of the open block."""

_SYNC, _END_SYNC = "\x1b[?2026h", "\x1b[?2026l"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"


class MarkdownView:
    """Draws an answer on a terminal. Elsewhere, and if TERM=dumb, the text is written as it arrives.

    The live part is never taller than the window, so that none of it scrolls out of reach: of a taller open
    block only the end is shown until it is finished.
    """

    def __init__(self, terminal: Terminal, *, theme: str = "auto") -> None:
        self._console = terminal.out
        self._out = terminal.stdout
        # The dark and light themes rounded to 16 colours would be neither.
        few = self._console.color_system == "standard" and theme in ("dark", "light")
        self._theme = markdown_theme("auto" if few else theme)
        self._plain = None
        if not terminal.stdout_is_tty or self._console.is_dumb_terminal:
            self._plain = AnswerWriter(terminal)
        self._open = ""
        self._blocks = 0
        self._live: list[str] = []
        self._next_frame = 0.0

    def write(self, text: str) -> None:
        """Draw more of the answer."""
        if self._plain is not None:
            self._plain.write(text)
            return
        self._open += strip_control(text)
        finished: list[str] = []
        if "\n" in text:
            finished, self._open = split_finished(self._open)
        now = monotonic()
        if finished or now >= self._next_frame:
            self._draw(finished)
            # Draw slow blocks less often, so that drawing does not slow the answer down.
            self._next_frame = now + max(FRAME_SECONDS, 4 * (monotonic() - now))

    def finish(self) -> None:
        """Draw the complete answer and put the cursor on a new line."""
        if self._plain is not None:
            self._plain.finish()
            return
        self._draw([self._open] if self._open.strip() else [], last=True)
        self._open = ""

    def interrupt(self) -> None:
        """Keep what was drawn of a stopped answer."""
        if self._plain is not None:
            self._plain.interrupt()
        else:
            self.finish()

    def _draw(self, finished: list[str], *, last: bool = False) -> None:
        columns, rows = shutil.get_terminal_size()
        # Leave the last column free: terminals differ in where the cursor goes after a full line.
        width = max(columns - 1, 8)
        kept: list[str] = []
        for source in finished:
            lines = block_lines(source, self._theme, width)
            if lines:
                kept += [""] * (self._blocks > 0) + self._encoded(lines)
                self._blocks += 1
        live: list[str] = []
        if not last and self._open.strip():
            tail = self._open if self._open.count("\n") < 4 * rows else self._end_of_open(4 * rows)
            live = [""] * (self._blocks > 0) + self._encoded(block_lines(tail, self._theme, width))
            live = _fitting(live, columns, rows - 1)
        if live == self._live and not kept and not last:
            return
        self._out.write(_SYNC + _HIDE + self._erase(columns))
        self._out.write("".join(f"{line}\n" for line in kept) + "\n".join(live))
        self._out.write(_SHOW + _END_SYNC)
        self._out.flush()
        self._live = live

    def _end_of_open(self, lines: int) -> str:
        """Return the end of a very long open block, as a block of the same kind."""
        first, _, _ = self._open.partition("\n")
        end = "\n".join(self._open.split("\n")[-lines:])
        return f"{first}\n{end}" if first.lstrip().startswith(("```", "~~~")) else end

    def _erase(self, columns: int) -> str:
        """Return codes that erase the live part from its end. A resize changes how many rows its lines take."""
        if not self._live:
            return ""
        up = sum(_rows(line, columns) for line in self._live) - 1
        # Line by line, because "erase below" makes some terminals keep a copy in the scrollback.
        return "\r\x1b[2K" + "\x1b[1A\x1b[2K" * up

    def _encoded(self, lines: list[Text]) -> list[str]:
        with self._console.capture() as capture:
            for line in lines:
                self._console.print(line, soft_wrap=True, highlight=False)
        return capture.get().split("\n")[:-1]


def _rows(line: str, columns: int) -> int:
    return max(1, -(-Text.from_ansi(line).cell_len // columns))


def _fitting(lines: list[str], columns: int, rows: int) -> list[str]:
    """Return the last lines that fit into ``rows`` screen rows."""
    start, used = len(lines), 0
    while start and (used := used + _rows(lines[start - 1], columns)) <= max(rows, 1):
        start -= 1
    return lines[start:]
