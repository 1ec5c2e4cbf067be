"""How an answer and what goes on before it appear: plain text on stdout, a status line on stderr."""

import re
from types import TracebackType

from rich.status import Status

from mllama_cli.core.events import (
    EncodingImage,
    Event,
    GenerationStats,
    LoadProgress,
    Notice,
    ReadingPrompt,
)
from mllama_cli.terminal.console import Terminal

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class AnswerWriter:
    """Writes an answer piece by piece, flushed, and ends it with exactly one newline."""

    def __init__(self, terminal: Terminal) -> None:
        self._out = terminal.stdout
        self._clean = terminal.stdout_is_tty
        self._newlines = ""
        self.started = False

    def write(self, text: str) -> None:
        if self._clean:  # what a model says must not steer the terminal
            text = _CONTROL.sub("", text)
        body = text.rstrip("\n")
        if not body:
            self._newlines += text
            return
        self.started = True
        self._out.write(self._newlines + body)
        self._newlines = text[len(body) :]
        self._out.flush()

    def finish(self) -> None:
        self._out.write("\n")
        self._out.flush()


class StatusLine:
    """A spinner that says what goes on, on stderr and only where that is a terminal. Gone before the answer begins."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._status: Status | None = None

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def show(self, text: str) -> None:
        if not self._terminal.stderr_is_tty:
            return
        if self._status is None:
            self._status = self._terminal.err.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def event(self, event: Event) -> None:
        """Show what an event says; notices are lines of their own that scripts see too."""
        match event:
            case Notice(text):
                self.clear()
                self._terminal.note(text)
            case LoadProgress(done, total):
                self.show(f"Loading the model {100 * done // max(total, 1)} %")
            case EncodingImage(index, count, layer, layers):
                what = "Looking at the image" if count == 1 else f"Looking at image {index} of {count}"
                self.show(f"{what} {_bar(layer, layers)}" if layer else what)
            case ReadingPrompt(done, total):
                self.show("Thinking" if done == total or total < 1024 else f"Reading {done} of {total} tokens")
            case _:
                self.clear()


def _bar(done: int, total: int, width: int = 24) -> str:
    """A bar of ``width`` characters and a percentage."""
    filled = width * done // total
    return f"[cyan]{'━' * filled}[/][dim]{'━' * (width - filled)}[/] {100 * done // total} %"


def stats_line(stats: GenerationStats) -> str:
    """One line of statistics for people."""
    cached = f" ({stats.cached_tokens} cached)" if stats.cached_tokens else ""
    pictures = f", {stats.images} image{'s' * (stats.images > 1)}" if stats.images else ""
    speed = f" at {stats.tokens_per_second:.1f} tokens/s" if stats.tokens_per_second else ""
    return (
        f"{stats.prompt_tokens} prompt tokens{cached}{pictures} | {stats.completion_tokens} tokens{speed} | "
        f"TTFT {stats.time_to_first_token:.2f} s"
        + (f" (image {stats.encode_seconds:.2f} s)" if stats.encode_seconds >= 0.005 else "")
        + (f" | {stats.finish_reason}" if stats.finish_reason != "stop" else "")
    )
