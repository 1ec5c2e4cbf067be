"""Progress of a run over shards on stderr: a bar on a terminal, nothing elsewhere; a summary."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from mllama_cli.terminal.caption_view import MAX_LISTED_FAILURES
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.progress import clock


class ShardView:
    """Shows the counts of a run. Use it as a context manager, so that the bar is always removed."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._failures: list[tuple[str, str]] = []

    def __enter__(self) -> "ShardView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, counts: Mapping[str, Any]) -> None:
        """Draw the bar with the counts of ``Tally.fields``."""
        if not self._terminal.stderr_is_tty:
            return
        if self._bar is None:
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("shards, {task.fields[counts]}", markup=False),
                console=self._terminal.err,
                transient=True,
            )
            self._task = self._bar.add_task("", total=counts["shards"], counts="")
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=counts["shards_done"], counts=_figures(counts))

    def failed(self, path: str, reason: str) -> None:
        """Keep a failure for the summary."""
        if len(self._failures) < MAX_LISTED_FAILURES:
            self._failures.append((path, reason))

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._terminal.note(text)

    def summary(self, counts: Mapping[str, Any]) -> None:
        """Print the counts, and the first failures with their reasons."""
        pictures, shards = counts["pictures"], counts["shards_done_here"]
        if not (shards or counts["pictures"] or counts["failed"] or counts["shards_failed"]):
            self._terminal.note(f"Captioned nothing: {counts['shards_done']} of {counts['shards']} shards are done.")
            return
        line = f"Captioned {pictures} picture{'s' * (pictures != 1)} in {shards} shard{'s' * (shards != 1)}"
        if failed := counts["failed"]:
            line += f", failed {failed}"
        if counts["skipped"]:
            line += f", left out {counts['skipped']} whose key was there already"
        line += f" in {clock(counts['seconds'])} ({_speed(counts)}). "
        line += f"{counts['shards_done']} of {counts['shards']} shards done."
        self._terminal.note(line)
        for path, reason in self._failures:
            self._terminal.err.print(f"  {path}: {reason}", style="red")
        more = failed + counts["shards_failed"] - len(self._failures)
        if more > 0:
            self._terminal.note(f"  and {more} more (--errors FILE lists them all)")


def _speed(counts: Mapping[str, Any]) -> str:
    if workers := len(counts.get("workers", ())):
        each = f", {counts['pictures_per_second']:.1f} each of {workers} actors" if workers > 1 else ""
        return f"{counts['pictures_per_second_in_all']:.1f} images/s{each}"
    return f"{counts['pictures_per_second']:.1f} images/s"


def _figures(counts: Mapping[str, Any]) -> str:
    figures = f"{counts['pictures']} pictures"
    if counts["failed"]:
        figures += f", {counts['failed']} failed"
    figures += f", {counts['pictures_per_second']:.1f}/s"
    if counts["pictures_per_second_in_all"] > counts["pictures_per_second"]:
        figures += f" ({counts['pictures_per_second_in_all']:.0f}/s in all)"
    if counts["seconds_left"] is not None:
        figures += f", {clock(counts['seconds_left'])} left"
    return figures
