"""Progress of long work on files, on stderr: a bar on a terminal, else a plain line now and then."""

import time
from types import TracebackType

from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mllama_cli.core.events import DownloadProgress, QuantizeProgress
from mllama_cli.terminal.console import Terminal

ByteProgress = DownloadProgress | QuantizeProgress

LINE_EVERY = 5.0
"""Seconds between two lines where stderr is not a terminal."""


class DownloadView:
    """Shows events that count bytes; ``verb`` says what is done to ``name``.

    Use as a context manager, so that the bar is gone whatever happens.
    """

    def __init__(self, terminal: Terminal, name: str, verb: str = "Downloading") -> None:
        self._terminal = terminal
        self._name = name
        self._verb = verb
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first: ByteProgress | None = None
        self._started = self._last_line = 0.0

    def __enter__(self) -> "DownloadView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def event(self, event: ByteProgress) -> None:
        """Show the progress."""
        if self._first is None:
            self._first = event
            self._started = self._last_line = time.monotonic()
            if event.done < event.total and not self._terminal.stderr_is_tty:
                self._say(event, "")
        if self._first.done >= self._first.total:  # everything was there before
            return
        if self._terminal.stderr_is_tty:
            self._draw(event)
        elif time.monotonic() - self._last_line >= LINE_EVERY and event.done < event.total:
            self._last_line = time.monotonic()
            self._say(event, self._pace(event))

    def _draw(self, event: ByteProgress) -> None:
        if self._bar is None or self._task is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._terminal.err,
                transient=True,
                speed_estimate_period=20,
            )
            self._task = self._bar.add_task(self._name, total=event.total)
            # What was there before does not count as speed: set while the clock is stopped.
            self._bar.update(self._task, completed=event.done)
            self._bar.reset(self._task, completed=event.done, total=event.total)
            self._bar.start()
        self._bar.update(self._task, completed=event.done)

    def _pace(self, event: ByteProgress) -> str:
        """Return speed and time left, measured over this whole run."""
        assert self._first is not None
        speed = (event.done - self._first.done) / max(time.monotonic() - self._started, 1e-9)
        if speed <= 0:
            return ""
        seconds = round((event.total - event.done) / speed)
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        left = f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
        return f", {decimal(round(speed))}/s, {left} left"

    def _say(self, event: ByteProgress, pace: str) -> None:
        percent = 100 * event.done // max(event.total, 1)
        self._terminal.note(
            f"{self._verb} {self._name}: {decimal(event.done)} of {decimal(event.total)} ({percent}%){pace}"
        )
