"""Progress of a download or quantization on stderr: a bar on a terminal, else a line every few seconds."""

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

PROGRESS_LINE_SECONDS = 5.0
"""Seconds between two lines if stderr is not a terminal."""


class DownloadView:
    """Shows events that count bytes; ``verb`` says what is done to ``name``.

    Use as a context manager, so that the bar is always removed.
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
        if self._first is None:
            self._first = event
            self._started = self._last_line = time.monotonic()
            if event.done < event.total and not self._terminal.stderr_is_tty:
                self._say(event, "")
        if self._first.done >= self._first.total:  # nothing was left to do
            return
        if self._terminal.stderr_is_tty:
            self._draw(event)
        elif time.monotonic() - self._last_line >= PROGRESS_LINE_SECONDS and event.done < event.total:
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
            # Set while the clock is stopped, so that earlier progress does not count as speed.
            self._bar.update(self._task, completed=event.done)
            self._bar.reset(self._task, completed=event.done, total=event.total)
            self._bar.start()
        self._bar.update(self._task, completed=event.done)

    def _pace(self, event: ByteProgress) -> str:
        """Format speed and time left, measured over this run."""
        assert self._first is not None
        speed = (event.done - self._first.done) / max(time.monotonic() - self._started, 1e-9)
        if speed <= 0:
            return ""
        return f", {decimal(round(speed))}/s, {clock((event.total - event.done) / speed)} left"

    def _say(self, event: ByteProgress, pace: str) -> None:
        percent = 100 * event.done // max(event.total, 1)
        self._terminal.note(
            f"{self._verb} {self._name}: {decimal(event.done)} of {decimal(event.total)} ({percent}%){pace}"
        )


def clock(seconds: float) -> str:
    """Format a duration.

    >>> clock(75.2), clock(3725)
    ('1:15', '1:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
