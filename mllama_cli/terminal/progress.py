"""Progress of a download or quantization on stderr: a bar on a terminal, nothing elsewhere."""

from types import TracebackType

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
from mllama_cli.terminal.type_ahead import TypeAhead

ByteProgress = DownloadProgress | QuantizeProgress


FIGURES_WIDTH = 36
"""Columns of a bar's figures and gaps at their widest: 999.9/999.9 GB, 999.9 MB/s, 0:00:00."""

MIN_BAR_WIDTH = 16


class DownloadView:
    """Shows events that count bytes of ``name``.

    Use as a context manager, so that the bar is always removed. What is typed meanwhile is not echoed into it.
    """

    def __init__(self, terminal: Terminal, name: str) -> None:
        self._terminal = terminal
        self._type_ahead = TypeAhead(terminal, prompts=False)
        self._name = name
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._first: ByteProgress | None = None

    def __enter__(self) -> "DownloadView":
        self._type_ahead.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._type_ahead.__exit__(kind, error, trace)

    def event(self, event: ByteProgress) -> None:
        if self._first is None:
            self._first = event
        if self._first.done >= self._first.total:  # nothing was left to do
            return
        if self._terminal.stderr_is_tty:
            self._draw(event)

    def _draw(self, event: ByteProgress) -> None:
        if self._bar is None or self._task is None:
            room = self._terminal.err.width - FIGURES_WIDTH
            name = shortened(self._name, max(room - MIN_BAR_WIDTH, 8))
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=max(4, min(40, room - len(name)))),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._terminal.err,
                transient=True,
                speed_estimate_period=20,
            )
            self._task = self._bar.add_task(name, total=event.total)
            # Set while the clock is stopped, so that earlier progress does not count as speed.
            self._bar.update(self._task, completed=event.done)
            self._bar.reset(self._task, completed=event.done, total=event.total)
            self._bar.start()
        self._bar.update(self._task, completed=event.done)


def shortened(name: str, width: int) -> str:
    """Return a name cut to ``width`` characters in its middle, where long names of models differ least.

    >>> shortened("owner/Llama-3.2-11B-Vision-Instruct", 20)
    'owner/Llam…-Instruct'
    """
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - half]}…{name[-half:]}"


def clock(seconds: float) -> str:
    """Format a duration.

    >>> clock(75.2), clock(3725)
    ('1:15', '1:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
