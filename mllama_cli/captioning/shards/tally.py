"""Count what a run over shards has done, for its progress and its summary."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mllama_cli.core.caption_events import (
    Captioned,
    CaptionEvent,
    CaptionFailed,
    CaptionSkipped,
    ShardDone,
    ShardEvent,
    ShardFailed,
    ShardLost,
    ShardsPlanned,
    WorkerEvent,
)
from mllama_cli.core.text import natural_key


@dataclass
class Tally:
    """The counts of this worker, or of those that it drives, and how many shards all workers have done.

    Args:
        left: the shards that no worker has done yet, of which several workers may be at work.
        by_worker: the pictures that each of several workers that this one drives has handled.
    """

    left: Callable[[], int] | None = None
    shards: int = 0
    done_before: int = 0
    shards_done: int = 0
    shards_failed: int = 0
    pictures: int = 0
    failed: int = 0
    skipped: int = 0
    tokens: int = 0
    damaged: list[str] = field(default_factory=list)
    by_worker: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def event(self, event: CaptionEvent | ShardEvent) -> None:
        match event:
            case WorkerEvent(worker, told):
                self.by_worker.setdefault(worker, 0)
                self.by_worker[worker] += isinstance(told, Captioned | CaptionFailed)
                self.event(told)
            case ShardsPlanned(total, done):
                self.shards, self.done_before, self.started = total, done, time.monotonic()
            case Captioned(record):
                self.pictures += 1
                self.tokens += record.tokens
            case CaptionFailed():
                self.failed += 1
            case CaptionSkipped():
                self.skipped += 1
            case ShardDone():
                self.shards_done += event.is_new
                if event.damage:
                    self.damaged.append(event.path)
            case ShardFailed():
                self.shards_failed += 1
            case ShardLost():
                self.pictures -= event.pictures
                self.failed -= event.failed
                self.skipped -= event.skipped
                self.tokens -= event.tokens

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def done_in_all(self) -> int:
        """The shards that have their output, from any worker."""
        own = self.done_before + self.shards_done
        return own if self.left is None else max(own, self.shards - self.left())

    @property
    def speed(self) -> float:
        """Pictures that this worker handles in a second, or each of those that it drives."""
        return self._speed_here / max(1, len(self.by_worker))

    @property
    def speed_in_all(self) -> float:
        """Pictures that all workers handle in a second, should their shards be as large as those done here."""
        since = self.done_in_all - self.done_before
        return self._speed_here * since / self.shards_done if self.shards_done else self._speed_here

    @property
    def _speed_here(self) -> float:
        return (self.pictures + self.failed) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """The time until all shards are done, by the shards since the start; None before the first."""
        since = self.done_in_all - self.done_before
        return (self.shards - self.done_in_all) * self.seconds / since if since else None

    def fields(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        left = self.seconds_left
        return {
            "shards": self.shards,
            "shards_done": self.done_in_all,
            "shards_done_here": self.shards_done,
            "shards_failed": self.shards_failed,
            "shards_damaged": self.damaged,
            "pictures": self.pictures,
            "failed": self.failed,
            "skipped": self.skipped,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "pictures_per_second": round(self.speed, 2),
            "pictures_per_second_in_all": round(self.speed_in_all, 2),
            "seconds_left": None if left is None else round(left),
            **({"workers": self._workers()} if self.by_worker else {}),
        }

    def _workers(self) -> dict[str, dict[str, float]]:
        seconds = max(self.seconds, 1e-9)
        return {
            name: {"pictures": count, "pictures_per_second": round(count / seconds, 2)}
            for name, count in sorted(self.by_worker.items(), key=lambda item: natural_key(item[0]))
        }
