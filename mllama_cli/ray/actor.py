"""An actor of `mllama caption --ray`: captions whole shards, as a worker does without Ray."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mllama_cli.captioning.postprocess import Postprocess
from mllama_cli.captioning.shards.entry import ReadOptions, Shard
from mllama_cli.captioning.shards.outputs import OutputForm
from mllama_cli.captioning.shards.run import ShardPlan
from mllama_cli.core.caption_events import CaptionEvent, ShardEvent, ShardsPlanned
from mllama_cli.ray.captioner import loaded

if TYPE_CHECKING:
    from mllama_cli.captioning.asker import Asker

MAX_EVENTS = 1000
"""Events of one answer."""
WAIT_SECONDS = 0.5

_IDLE_SECONDS = 0.02


@dataclass(frozen=True)
class ShardWork:
    """What all actors are told: how to caption, and where the captions go.

    Attributes:
        name: what the model is called in the rows; None for the name that it is loaded by.
        workers: processes of each actor that decode pictures; None for the default.
        asker: answers instead of an engine.
    """

    folder: str
    form: OutputForm = "parquet"
    columns: Sequence[str] | None = None
    options: ReadOptions = field(default_factory=ReadOptions)
    prompt: str = ""
    postprocess: Postprocess = field(default_factory=Postprocess)
    model: str | None = None
    name: str | None = None
    system: str = ""
    prefill: str = ""
    slots: int | None = None
    workers: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    asker: "Asker | None" = None


@dataclass(frozen=True)
class Told:
    """What an actor tells: the events since it was asked last, and whether it could begin another shard."""

    events: Sequence[CaptionEvent | ShardEvent]
    wants_shard: bool
    has_ended: bool


class ShardActor:
    """Captions the shards that it is given, one engine for all of them, in a thread of its own."""

    def __init__(self, work: ShardWork) -> None:
        self._work = work
        self._shards: queue.SimpleQueue[Shard | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[CaptionEvent | ShardEvent] = queue.SimpleQueue()
        self._is_ready = self._has_ended = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="caption", daemon=True).start()

    def ask(self, shard: Shard | None = None, *, is_last: bool = False) -> Told:
        """Take a shard, and return what has happened meanwhile, or does within a moment.

        ``is_last`` says that no shard follows, so that the actor ends when it has done those that it has.

        Raise what prevents the actor from captioning any picture.
        """
        if shard is not None:
            self._shards.put(shard)
        if is_last:
            self._shards.put(None)
        events: list[CaptionEvent | ShardEvent] = []
        has_ended = self._has_ended and self._error is None  # asked before the last events are taken
        try:
            while len(events) < MAX_EVENTS:
                events.append(self._events.get(timeout=0 if events else WAIT_SECONDS))
        except queue.Empty:
            pass
        if self._error is not None and not events:
            raise self._error
        return Told(events, self._is_ready and self._shards.empty(), has_ended and self._events.empty())

    def _run(self) -> None:
        from mllama_cli.captioning.decoding import DecodingPool
        from mllama_cli.captioning.prompts import PromptTemplate
        from mllama_cli.captioning.shards.destination import ShardDestination
        from mllama_cli.captioning.shards.run import caption_shards
        from mllama_cli.captioning.shards.stores import store_of

        work = self._work
        try:
            asker = work.asker or loaded(
                work.model, work.sampling, work.system, work.prefill, work.slots, work.load, name=work.name
            )
            self._is_ready = True
            with DecodingPool(work.workers) as pool:
                events = caption_shards(
                    ShardPlan(0, ()),
                    self._taken(),
                    asker,
                    ShardDestination(store_of(work.folder), work.folder, work.form, work.columns),
                    PromptTemplate(work.prompt),
                    work.postprocess,
                    work.options,
                    pool=pool,
                )
                for event in events:
                    if not isinstance(event, ShardsPlanned):  # the driver planned
                        self._events.put(event)
        except BaseException as error:  # the driver reports it
            self._error = error
        finally:
            self._has_ended = True

    def _taken(self) -> Iterator[Shard | None]:
        while True:
            try:
                shard = self._shards.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                yield None
                continue
            if shard is None:
                return
            yield shard
