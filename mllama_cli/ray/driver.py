"""Share shards out among Ray's actors: `mllama caption --ray`. All but that is as in a run without Ray."""

import math
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mllama_cli.captioning.shards.entry import Shard
from mllama_cli.captioning.shards.outputs import SUFFIXES
from mllama_cli.captioning.shards.packages import required
from mllama_cli.captioning.shards.run import ShardPlan
from mllama_cli.captioning.shards.stores import store_of
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
from mllama_cli.core.errors import CaptionError, MllamaError
from mllama_cli.ray.actor import ShardActor, ShardWork, Told

OBJECT_STORE_BYTES = 100_000_000
"""Of a Ray that is started here: only events go through it."""
MAX_VAIN_STARTS = 3
"""Actors in a row that may die before any of them has captioned a picture."""


def caption_on_ray(
    plan: ShardPlan, work: ShardWork, *, address: str, actors: int | None = None
) -> Generator[CaptionEvent | ShardEvent]:
    """Yield ShardsPlanned first, then an event for each picture and each shard, as ``caption_shards`` does.

    What an actor tells is a WorkerEvent. The shards of an actor that died, of which ShardLost tells, are done again by
    another.

    Args:
        address: "local" starts Ray on this machine, "auto" takes the cluster that it belongs to.
        actors: models at once; None for the number of GPUs.

    Raises MllamaError.
    """
    ray = required("ray")
    planned = ShardsPlanned(plan.total, plan.total - len(plan.pending))
    if not plan.pending:
        yield planned
        return
    with _connected(ray, address):
        yield planned
        team = _Team(ray, work, plan, actors)
        try:
            yield from team.run()
        finally:
            team.close()


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Be connected to Ray, as this process may be already. Raise CaptionError."""
    if ray.is_initialized():
        yield
        return
    local = {"object_store_memory": OBJECT_STORE_BYTES} if address == "local" else {}
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error", **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CaptionError(
            f"Ray cannot be reached at {address}: {reason}", "Check the address; --ray local starts Ray here."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(eq=False)
class _Member:
    """An actor, with the shards that it has not done yet and what it has told of each."""

    name: str
    handle: Any
    shards: dict[str, Shard] = field(default_factory=dict)
    counts: dict[str, ShardLost] = field(default_factory=dict)
    is_last: bool = False


class _Team:
    def __init__(self, ray: Any, work: ShardWork, plan: ShardPlan, actors: int | None) -> None:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1)
        count = min(actors or max(1, gpus), max(1, len(plan.pending)))
        each = cpus / count
        self._options = {
            "num_gpus": 1 if gpus else 0,
            "num_cpus": 1 if gpus else math.floor(each) if each >= 1 else each,
        }
        self._ray, self._work, self._store = ray, work, store_of(work.folder)
        self._waiting = deque(plan.pending)
        self._members: dict[Any, _Member] = {}
        self._vain_starts = 0
        for index in range(count):
            self._start(f"actor-{index + 1}")

    def run(self) -> Iterator[CaptionEvent | ShardEvent]:
        """Yield the events of all actors until every shard is done."""
        while self._waiting or any(member.shards for member in self._members.values()):
            ready, _ = self._ray.wait(list(self._members))
            member = self._members.pop(ready[0])
            try:
                told: Told = self._ray.get(ready[0])
            except self._ray.exceptions.RayActorError as error:
                yield from self._replace(member, error)
                continue
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, MllamaError):
                    raise cause from None
                raise CaptionError(f"An actor of Ray failed: {' '.join(str(cause).split())[:300]}") from error
            for event in told.events:
                self._count(member, event)
                yield WorkerEvent(member.name, event)
            self._go_on(member, told)

    def close(self) -> None:
        """End the actors, whatever they do."""
        for member in self._members.values():
            self._ray.kill(member.handle)
        self._members.clear()

    def _start(self, name: str) -> None:
        handle = self._ray.remote(ShardActor).options(**self._options).remote(self._work)
        self._members[handle.ask.remote()] = _Member(name, handle)

    def _go_on(self, member: _Member, told: Told) -> None:
        """Ask an actor again, with another shard if it wants one; end one that has nothing left to do."""
        shard = self._waiting.popleft() if told.wants_shard and self._waiting and not member.is_last else None
        if shard is not None:
            member.shards[shard.path] = shard
            member.counts[shard.path] = ShardLost(shard.path)
        if told.has_ended or not (member.shards or self._waiting):
            assert not member.shards, "an actor ended before its shards were done"
            self._ray.kill(member.handle)
            return
        ends = not self._waiting and not member.is_last
        member.is_last = member.is_last or ends
        self._members[member.handle.ask.remote(shard, is_last=ends)] = member

    def _count(self, member: _Member, event: CaptionEvent | ShardEvent) -> None:
        match event:
            case ShardDone(path) | ShardFailed(path):
                self._vain_starts = 0
                member.shards.pop(path, None)
                member.counts.pop(path, None)
            case Captioned(record) | CaptionFailed(record):
                self._vain_starts = 0
                self._add(member, record.path, event)
            case CaptionSkipped(path):
                self._add(member, path, event)

    def _add(self, member: _Member, path: str, event: CaptionEvent | ShardEvent) -> None:
        for shard, counts in member.counts.items():
            if path.startswith(f"{shard}/"):
                member.counts[shard] = counts.with_picture(event)

    def _replace(self, member: _Member, error: Exception) -> Iterator[ShardEvent]:
        """Give what a dead actor had to others, and start another."""
        self._ray.kill(member.handle)  # it may only seem dead
        self._vain_starts += 1
        if self._vain_starts > MAX_VAIN_STARTS:
            reason = " ".join(str(error).split())[:300]
            raise CaptionError(f"Ray's actors die before they caption anything: {reason}", "See Ray's logs.")
        for path, shard in member.shards.items():
            output = f"{self._work.folder.rstrip('/')}/{shard.name}{SUFFIXES[self._work.form]}"
            if self._store.exists(output):  # it died between the two
                counts = member.counts[path]
                yield ShardDone(path, output, counts.pictures + counts.failed, counts.failed)
            else:
                yield member.counts[path]
                self._waiting.appendleft(shard)
        if self._waiting:
            self._start(member.name)
