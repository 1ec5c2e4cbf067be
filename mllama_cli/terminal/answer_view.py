"""Show an answer: its text on stdout, and until it begins a status line on stderr."""

from collections.abc import Generator
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import (
    EncodingImage,
    Event,
    GenerationStats,
    LoadProgress,
    Notice,
    Prefilled,
    ReadingPrompt,
    Token,
)
from mllama_cli.core.text import one_line, strip_control
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from rich.status import Status
    from rich.text import Text


class Writer(Protocol):
    """Writes the text of an answer: ``AnswerWriter`` or ``markdown.view.MarkdownView``."""

    def write(self, text: str) -> None: ...
    def finish(self) -> None: ...
    def interrupt(self) -> None: ...


class AnswerView:
    """Shows and collects the events of an answer. Without a ``writer`` the text is only collected."""

    def __init__(self, terminal: Terminal, writer: Writer | None) -> None:
        self.terminal = terminal
        self.text = ""
        self.notices: list[str] = []
        self.stats: GenerationStats | None = None
        self.interrupted = False
        self._writer = writer

    def show(self, events: Generator[Event]) -> None:
        """Show all events. Ctrl-C keeps the partial answer and sets ``interrupted``. Raise MllamaError."""
        try:
            with closing(events), StatusLine(self.terminal) as status:
                for event in events:
                    self._show(event, status)
            if self._writer is not None:
                self._writer.finish()
        except KeyboardInterrupt:
            self.interrupted = True
            self._interrupt()
        except MllamaError:
            self._interrupt()  # the error message starts on a line of its own
            raise

    def _show(self, event: Event, status: "StatusLine") -> None:
        match event:
            case Token(text=text) | Prefilled(text=text):
                status.clear()
                self.text += text
                if self._writer is not None:
                    self._writer.write(text)
            case GenerationStats():
                self.stats = event
            case _:
                if isinstance(event, Notice):
                    self.notices.append(event.text)
                status.event(event)

    def _interrupt(self) -> None:
        if self.text and self._writer is not None:
            self._writer.interrupt()


class AnswerWriter:
    """Writes an answer as it arrives, flushed, and ends it with exactly one newline."""

    def __init__(self, terminal: Terminal) -> None:
        self._out = terminal.stdout
        self._is_tty = terminal.stdout_is_tty
        self._newlines = ""
        self._started = False

    def write(self, text: str) -> None:
        if self._is_tty:  # a model's output must not control the terminal
            text = strip_control(text)
        body = text.rstrip("\n")
        if not body:
            self._newlines += text
            return
        self._started = True
        self._out.write(self._newlines + body)
        self._newlines = text[len(body) :]
        self._out.flush()

    def finish(self) -> None:
        """End the last line."""
        self._out.write("\n")
        self._out.flush()

    def interrupt(self) -> None:
        """End the last line if anything was written."""
        if self._started:
            self.finish()


class StatusLine:
    """A spinner with the current step, on stderr if that is a terminal; removed before the answer begins."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._status: Status | None = None

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def show(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show a step, and after it a bar if some of it is done."""
        if not self._terminal.stderr_is_tty:
            return
        from rich.text import Text

        text = one_line(text)
        line = (
            Text.assemble(text, " ", _bar(done, total)) if done else Text(text)
        )  # not str, which Rich would parse as markup
        if self._status is None:
            self._status = self._terminal.err.status(line)
            self._status.start()
        else:
            self._status.update(line)

    def clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def event(self, event: Event) -> None:
        """Show an event. Notices are printed, also if stderr is not a terminal."""
        match event:
            case Notice(text):
                self.clear()
                self._terminal.note(text)
            case LoadProgress(done, total):
                self.show(f"Loading the model {100 * done // max(total, 1)}%")
            case EncodingImage(index, count, layer, layers):
                what = "Looking at the image" if count == 1 else f"Looking at image {index} of {count}"
                self.show(what, layer, layers)
            case ReadingPrompt(done, total):
                self.show("Thinking" if done == total or total < 1024 else f"Reading {done} of {total} tokens")
            case _:
                self.clear()


def _bar(done: int, total: int, width: int = 24) -> "Text":
    """Return a bar of ``width`` characters and a percentage."""
    from rich.text import Text

    filled = width * done // total
    return Text.assemble(("━" * filled, "cyan"), ("━" * (width - filled), "dim"), f" {100 * done // total}%")


def stats_line(stats: GenerationStats) -> str:
    """Format statistics as one line."""
    cached = f" ({stats.cached_tokens} cached)" if stats.cached_tokens else ""
    images = f", {stats.images} image{'s' * (stats.images > 1)}" if stats.images else ""
    speed = f" at {stats.tokens_per_second:.1f} tokens/s" if stats.tokens_per_second else ""
    return (
        f"{stats.prompt_tokens} prompt tokens{cached}{images} | {stats.completion_tokens} tokens{speed} | "
        f"TTFT {stats.time_to_first_token:.2f} s"
        + (f" (image {stats.encode_seconds:.2f} s)" if stats.encode_seconds >= 0.005 else "")
        + (f" | {stats.finish_reason}" if stats.finish_reason != "stop" else "")
    )
