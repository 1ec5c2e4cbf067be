"""Progress of a captioning run on stderr: a bar with the last caption, else a line every few seconds; a summary."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from mllama_cli.core.caption_events import (
    BatchSize,
    Captioned,
    CaptionEvent,
    CaptionFailed,
    CaptionSkipped,
    CaptionsPlanned,
)
from mllama_cli.core.text import strip_control
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.progress import PROGRESS_LINE_SECONDS, clock

MAX_LISTED_FAILURES = 20


class CaptionView:
    """Counts and shows caption events. Use as a context manager, so that the bar is always removed."""

    def __init__(self, terminal: Terminal, *, verbose: bool = False) -> None:
        self._terminal = terminal
        self._verbose = verbose
        self.total = self.done = self.skipped = self.failed = self.tokens = 0
        self.failures: list[tuple[str, str]] = []
        self._last: tuple[str, str] | None = None
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "CaptionView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the bar while something is printed without Rich."""
        shown = self._live is not None
        self.stop()
        yield
        if shown:
            self._show()

    def event(self, event: CaptionEvent) -> None:
        match event:
            case CaptionsPlanned(total, skipped):
                self.total, self.skipped = total, skipped
                self._started = self._last_line = time.monotonic()
                self._begin()
            case Captioned(record):
                self.done += 1
                self.tokens += record.tokens
                self._last = (record.path, record.caption)
            case CaptionSkipped():
                self.skipped += 1
            case CaptionFailed(record):
                self.failed += 1
                self.failures.append((record.path, record.error))
            case BatchSize(slots):
                if self._verbose:
                    self._terminal.note(f"{slots} picture{'s' * (slots != 1)} at once")
        self._draw()

    def summary(self) -> None:
        """Print the counts, and each failure with its reason."""
        seconds = time.monotonic() - self._started
        parts = [f"Captioned {self.done}"]
        parts += [f"skipped {self.skipped} (done before)"] if self.skipped else []
        parts += [f"failed {self.failed}"] if self.failed else []
        line = ", ".join(parts)
        if self.done:
            line += f" in {clock(seconds)} ({self.done / max(seconds, 1e-9):.1f} images/s"
            line += f", {self.tokens / max(seconds, 1e-9):.0f} tokens/s)" if self._verbose else ")"
        self._terminal.note(f"{line}.")
        for path, reason in self.failures[:MAX_LISTED_FAILURES]:
            self._terminal.err.print(f"  {path}: {reason}", style="red")
        if len(self.failures) > MAX_LISTED_FAILURES:
            self._terminal.note(f"  and {len(self.failures) - MAX_LISTED_FAILURES} more (--errors FILE lists them all)")

    def _begin(self) -> None:
        if not self._terminal.stderr_is_tty or self.skipped == self.total:
            return
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}", markup=False),
            TimeRemainingColumn(),
            console=self._terminal.err,
            speed_estimate_period=60,
        )
        self._task = self._bar.add_task("", total=self.total - self.skipped, counts="")
        self._show()

    def _show(self) -> None:
        # A new one each time: an old one would erase the lines that others have printed since.
        self._live = Live(
            get_renderable=self._renderable, console=self._terminal.err, refresh_per_second=8, transient=True
        )
        self._live.start()

    def _renderable(self) -> RenderableType:
        assert self._bar is not None
        if self._last is None:
            return self._bar
        path, caption = self._last
        shown = Text(no_wrap=True, overflow="ellipsis")
        shown.append(strip_control(path.rpartition("/")[2]), style="bold")
        shown.append("  " + " ".join(strip_control(caption).split()))
        return Group(self._bar, shown)

    def _draw(self) -> None:
        handled = self.done + self.failed
        pace = self.done / max(time.monotonic() - self._started, 1e-9)
        counts = f"{self.skipped} skipped, {self.failed} failed, {pace:.1f} images/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=handled, counts=counts)
        elif not self._terminal.stderr_is_tty and time.monotonic() - self._last_line >= PROGRESS_LINE_SECONDS:
            self._last_line = time.monotonic()
            left = self.total - self.skipped - handled
            remaining = f", {clock(left / pace)} left" if pace else ""
            self._terminal.note(f"{handled} of {self.total - self.skipped}: {counts}{remaining}")
