"""Answer the captioning pipeline's questions with several engines, each in a process of its own on its own device."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

from mllama_cli.captioning.asker import Answer, Question
from mllama_cli.captioning.decoding import POLL_SECONDS
from mllama_cli.core.answerer import ModelInfo
from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event, LoadProgress, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.parallel.crew import Crew
from mllama_cli.engine.parallel.team import Failure

AHEAD = 8
"""Questions that a replica has beyond those that it answers at once, so that it never waits for this process."""


@dataclass(frozen=True)
class Asked:
    """How a replica is to answer; the fields are those of ``EngineAsker``."""

    sampling: Sampling
    system: str
    batch_size: int | None
    prefill: str


@dataclass(frozen=True)
class Replica:
    """What a process does that answers alone; the options are those of ``load``. ``threads`` are for a CPU."""

    folder: Path
    name: str
    device: str
    dtype: str
    quantize: str | None
    exact: bool
    image_kv: str | None
    fast: bool
    adapters: tuple[Path, ...]
    threads: int

    def __call__(self, connection: Connection) -> None:
        """Load the model and answer questions until there are no more."""
        try:
            self._answer(connection)
        except MllamaError as error:
            connection.send(Failure(type(error), error.message, error.hint))

    def _answer(self, connection: Connection) -> None:
        import torch

        from mllama_cli.captioning.engine_asker import EngineAsker
        from mllama_cli.engine.engine import Engine

        if self.device == "cpu":
            torch.set_num_threads(self.threads)
        engine = Engine(
            self.folder,
            self.name,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            exact=self.exact,
            image_kv=self.image_kv,
            fast=self.fast,
            adapters=self.adapters,
        )
        connection.send(engine.about)
        asked: Asked = connection.recv()
        for event in chain(engine.load_weights(vision=True), engine.prepare_batch()):
            connection.send(event)
        connection.send(asked)  # it is ready
        asker = EngineAsker(engine, asked.sampling, asked.system, asked.batch_size, prefill=asked.prefill)
        arrived: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
        in_progress = 0

        def questions() -> Iterator[Question | None]:
            nonlocal in_progress
            while True:
                try:
                    question = arrived.get(timeout=0 if in_progress else POLL_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if question is None:
                    return
                in_progress += 1
                yield question

        for answer in asker.ask(questions(), connection.send):
            in_progress -= 1
            connection.send(answer)


def _receive(connection: Connection, arrived: "queue.SimpleQueue[Question | None]") -> None:
    """Take in questions at once, so that the sender never waits for the answers."""
    question: Question | None = connection.recv()
    while question is not None:
        arrived.put(question)
        question = connection.recv()
    arrived.put(None)


class ReplicaAsker:
    """An Asker over several replicas; a question goes to the one that has most room."""

    draws_canvases = True

    def __init__(self, replicas: Sequence[Replica]) -> None:
        """Start the replicas' processes. Raise EngineError or what one of them raises."""
        self._crew = Crew()
        self._crew.start([replica.device for replica in replicas])
        for _ in replicas:
            self._reply()  # it runs
        for member, replica in zip(self._crew.members, replicas, strict=True):
            member.connection.send(replica)
        abouts = [self._reply()[1] for _ in replicas]
        about = abouts[0]
        assert isinstance(about, ModelInfo)
        self.about = about

    def load(self, asked: Asked) -> Iterator[Event]:
        """Let all load the weights; yield the progress of the slowest. Raise what one of them raises."""
        for member in self._crew.members:
            member.connection.send(asked)
        progress, notes, loading = dict.fromkeys(range(1, 1 + len(self._crew.members)), 0.0), set[str](), True
        left = len(self._crew.members)
        while loading:
            rank, reply = self._reply()
            if isinstance(reply, Asked):
                left -= 1
                loading = left > 0
            elif isinstance(reply, LoadProgress):
                progress[rank] = reply.done / max(reply.total, 1)
                yield replace(reply, done=int(min(progress.values()) * reply.total))
            elif isinstance(reply, Notice) and reply.text not in notes:
                notes.add(reply.text)
                yield reply
        self._batch_size = asked.batch_size

    @property
    def model(self) -> str:
        return self.about.name

    @property
    def image_config(self) -> ImageProcessorConfig:
        return self.about.require_images()

    def ask(self, questions: Iterable[Question | None], on_batch_size: Callable[[int], None]) -> Generator[Answer]:
        members = {member.rank: member for member in self._crew.members}
        slots = dict.fromkeys(members, self._batch_size or 0)
        waiting = dict.fromkeys(members, 0)
        source, more = iter(questions), True

        def room(rank: int) -> int:
            return (slots[rank] + AHEAD if slots[rank] else 1) - waiting[rank]

        try:
            while more or any(waiting.values()):
                while more and room(freest := max(members, key=room)) > 0:
                    question = next(source, _END)
                    if question is None:
                        break
                    if isinstance(question, Question):
                        members[freest].connection.send(question)
                        waiting[freest] += 1
                        continue
                    more = False
                    for member in members.values():
                        member.connection.send(None)
                for rank, reply in self._arrived(wait=any(waiting.values())):
                    if isinstance(reply, Answer):
                        waiting[rank] -= 1
                        yield reply
                    elif isinstance(reply, int):
                        slots[rank] = reply
                        on_batch_size(sum(slots.values()))
        finally:
            self._crew.close()

    def _arrived(self, *, wait: bool) -> Iterator[tuple[int, object]]:
        """Yield what replicas have said since the last time, waiting a little for the first."""
        end = time.monotonic() + (POLL_SECONDS if wait else 0)
        while True:
            try:
                yield self._reply(max(0, end - time.monotonic()))
            except queue.Empty:
                return

    def _reply(self, seconds: float | None = None) -> tuple[int, object]:
        """Return what a replica says next. Raise queue.Empty, or the error of one that has failed or ended."""
        said = self._crew.replies.get(timeout=seconds) if seconds is not None else self._crew.replies.get()
        if said is None:
            raise self._crew.error()
        if isinstance(said[1], Failure):
            raise said[1].kind(said[1].message, said[1].hint)
        return said


_END = object()
