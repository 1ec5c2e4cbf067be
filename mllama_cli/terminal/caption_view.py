"""Progress of a captioning run on stderr: a bar with the last caption, nothing elsewhere; a summary."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
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
from mllama_cli.terminal.progress import clock

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
        self._slots = 1
        self._started = monotonic()

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
                self._started = monotonic()
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
                self._slots = min(slots, self.total - self.skipped)
                if self._verbose:
                    self._terminal.note(f"{slots} picture{'s' * (slots != 1)} at once")
        self._draw()

    def summary(self) -> None:
        """Print the counts, and each failure with its reason."""
        seconds = monotonic() - self._started
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
            console=self._terminal.err,
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
            at_once = f"{self._slots} pictures" if self._slots > 1 else "the first picture"
            waited = clock(monotonic() - self._started)
            return Group(self._bar, Text(f"looking at {at_once}, {waited}", style="dim"))
        path, caption = self._last
        shown = Text(no_wrap=True, overflow="ellipsis")
        shown.append(strip_control(path.rpartition("/")[2]), style="bold")
        shown.append("  " + " ".join(strip_control(caption).split()))
        return Group(self._bar, shown)

    def _draw(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done + self.failed, counts=self._counts())

    def _counts(self) -> str:
        """Return what is done and, by the same figures, the time that is left."""
        handled = self.done + self.failed
        pace = handled / max(monotonic() - self._started, 1e-9)
        parts = [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{self.failed} failed"] if self.failed else []
        if handled:
            left = self.total - self.skipped - handled
            parts += [f"{pace:.1f} images/s" if pace >= 0.1 else f"{1 / pace:.0f} s each", f"{clock(left / pace)} left"]
        return ", ".join(parts)
