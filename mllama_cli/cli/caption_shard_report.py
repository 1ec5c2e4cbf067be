"""Show a run over shards, with or without Ray, and count what it does."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from mllama_cli.captioning.shards.run import ShardPlan
from mllama_cli.captioning.shards.tally import Tally
from mllama_cli.cli.caption_request import CaptionRequest
from mllama_cli.core.caption_events import (
    CaptionEvent,
    CaptionFailed,
    ShardDone,
    ShardEvent,
    ShardFailed,
    ShardLost,
    WorkerEvent,
)
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.shard_view import ShardView

PROGRESS_SECONDS = 10.0
"""How often --json prints the counts."""
DRAW_SECONDS = 0.25


class ShardReport:
    """Counts the events and shows them: a bar and a summary for people, JSON lines for machines."""

    def __init__(self, terminal: Terminal, request: CaptionRequest, tally: Tally) -> None:
        self._terminal = terminal
        self._json = request.prints_json
        self.tally, self.view = tally, ShardView(terminal)
        self.list_error: Callable[[CaptionFailed], None] = lambda event: None
        self._printed = self._drawn = time.monotonic()

    @property
    def has_failures(self) -> bool:
        return bool(self.tally.failed or self.tally.shards_failed or self.tally.damaged)

    def planned(self, plan: ShardPlan) -> None:
        """Count a run that has nothing left to do."""
        self.tally.shards, self.tally.done_before = plan.total, plan.total - len(plan.pending)

    @property
    def has_failed_pictures(self) -> bool:
        return bool(self.tally.failed)

    def event(self, event: CaptionEvent | ShardEvent) -> None:
        self.tally.event(event)
        if isinstance(event, WorkerEvent):
            self._event(event.event, {"worker": event.worker})
        else:
            self._event(event, {})

    def _event(self, event: CaptionEvent | ShardEvent, about: Mapping[str, Any]) -> None:
        if isinstance(event, CaptionFailed):
            record = event.record
            self.list_error(event)
            self.view.failed(record.path, record.error)
            self._say("failed", {"path": record.path, "error": record.error, "hint": event.hint, **about})
        elif isinstance(event, ShardFailed):
            reason = event.error.removeprefix(event.path).lstrip(": ")  # the path is shown first
            self.view.failed(event.path, f"{reason}. {event.hint}" if event.hint else reason)
            self._say("shard_failed", {"path": event.path, "error": event.error, "hint": event.hint, **about})
        elif isinstance(event, ShardLost):
            self.view.note(f"A worker died while it captioned {event.path}, which is done again.")
            self._say("shard_lost", {"path": event.path})
        elif isinstance(event, ShardDone):
            if event.damage:
                self.view.note(f"{event.path} {event.damage}: {event.pictures} pictures precede.")
            counts = {"output": event.output, "pictures": event.pictures, "failed": event.failed}
            end = {"damage": event.damage or None, "new": event.is_new}
            self._say("shard_done", {"path": event.path, **counts, **end, **about})
        now = time.monotonic()
        if self._json and now - self._printed >= PROGRESS_SECONDS:
            self._say("progress", self.tally.fields())
            self._printed = now
        if now - self._drawn >= DRAW_SECONDS:
            self.view.show(self.tally.fields())
            self._drawn = now

    def end(self) -> None:
        """Print the summary."""
        self.view.summary(self.tally.fields())
        self._say("summary", self.tally.fields())

    def _say(self, event: str, fields: Mapping[str, Any]) -> None:
        if self._json:
            self._terminal.result(json.dumps({"event": event, **fields}) + "\n")
