"""Captions for a list of pictures: ready ones are left out, the others decoded ahead and answered side by side."""

from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.captioning.decoding import Decoded, DecodingPool
from mllama_cli.captioning.destinations import Destination, Held
from mllama_cli.captioning.listing import Picture
from mllama_cli.captioning.plan import Plan
from mllama_cli.captioning.postprocess import Polish
from mllama_cli.captioning.prompts import PromptTemplate
from mllama_cli.captioning.sidecars import is_full, unwritable
from mllama_cli.core.caption_events import (
    BatchSize,
    Captioned,
    CaptionEvent,
    CaptionFailed,
    CaptionPlan,
    CaptionRecord,
    CaptionSkipped,
)
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.engine.batch.run import BatchReply, BatchRequest, run_batch
from mllama_cli.processing.image_processor import MllamaImageProcessor

if TYPE_CHECKING:
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.engine.engine import Engine
    from mllama_cli.processing.processor import ModelInputs


@dataclass(frozen=True)
class Task:
    """What is asked of the model about each picture, and what becomes of its answer."""

    prompt: PromptTemplate
    sampling: "Sampling"
    polish: Polish
    system: str = ""


@dataclass
class _Work:
    """A picture in the model's hands."""

    picture: Picture
    held: Held
    record: CaptionRecord


def caption_pictures(
    engine: "Engine",
    plan: Plan,
    destination: Destination,
    task: Task,
    *,
    slots: int | None = None,
    workers: int | None = None,
) -> Generator[CaptionEvent]:
    """Events of captioning: CaptionPlan first, then one for each picture that was not done already.

    A bad picture is an event, not an error. Closing the iterator stops the run: what is written stays, what is in work
    is let go. The engine's weights must be loaded.

    Args:
        slots: pictures answered at once; None for as many as memory allows.
        workers: processes that decode; None for one for each processor but one, 0 for none.

    Raises:
        CaptionError: the disk is full; no other picture would fare better.
        TemplateError, DeviceError, ...: the model can caption no picture at all.
    """
    run = _Run(engine, plan.pending, destination, task)
    through = False
    try:
        yield CaptionPlan(plan.total, plan.skipped)
        for folder, reason in plan.unreadable:
            yield run.failed(CaptionRecord(folder), f"cannot be listed: {reason}")
        yield from run.events(slots, workers)
        through = True
    finally:
        run.let_go()
        destination.finish(through=through, complete=through and not run.failures)


class _Run:
    def __init__(self, engine: "Engine", pending: Sequence[Picture], destination: Destination, task: Task) -> None:
        self.engine = engine
        self.pending = pending
        self.destination = destination
        self.task = task
        self.failures = 0
        self._told: deque[CaptionEvent] = deque()
        self._taken: deque[tuple[Picture, Held]] = deque()
        self._in_work: dict[Hashable, list[_Work]] = {}
        self._answers: dict[tuple[str, str], tuple[str, int]] = {}
        """(answer, tokens) by (digest, prompt): equal pictures are asked about once."""

    def events(self, slots: int | None, workers: int | None) -> Iterator[CaptionEvent]:
        processor = self.engine.processor.image_processor
        if processor is None:
            raise ImageError(f"{self.engine.name} is text-only: it cannot see pictures", "Name another model with -m.")
        with DecodingPool(processor.config, workers) as pool:
            replies = run_batch(
                self.engine.model,
                self._requests(pool, processor),
                slots=slots,
                on_slots=lambda n: self._told.append(BatchSize(n)),
            )
            with closing(replies):
                for reply in replies:
                    yield from self._news()
                    for work in self._in_work.pop(reply.key):
                        yield self._answered(work, reply)
            yield from self._news()

    def let_go(self) -> None:
        """Of everything that is in work and will not be finished."""
        for works in self._in_work.values():
            for work in works:
                work.held.drop()
        for _, held in self._taken:
            held.drop()
        self._in_work.clear()
        self._taken.clear()

    def failed(self, record: CaptionRecord, reason: str, hint: str = "") -> CaptionFailed:
        self.failures += 1
        return CaptionFailed(replace(record, model=self.engine.name, error=reason), hint)

    def _news(self) -> Iterator[CaptionEvent]:
        while self._told:
            yield self._told.popleft()

    def _take(self) -> Iterator[str]:
        """Paths of pictures that are ours to caption, held from here on."""
        for picture in self.pending:
            try:
                held = self.destination.take(picture)
            except (OSError, MllamaError) as error:
                known = unwritable(picture.path, error) if isinstance(error, OSError) else error
                if is_full(error):
                    raise known from error
                self._told.append(self.failed(CaptionRecord(picture.path), known.message, known.hint))
                continue
            if isinstance(held, str):
                self._told.append(CaptionSkipped(picture.path, held))
                continue
            self._taken.append((picture, held))
            yield picture.path

    def _requests(self, pool: DecodingPool, processor: MllamaImageProcessor) -> Iterator[BatchRequest | None]:
        for decoded in pool.decoded(self._take()):
            if decoded is None:
                yield None
                continue
            picture, held = self._taken.popleft()
            record = CaptionRecord(picture.path, model=self.engine.name)
            if not isinstance(decoded, Decoded):
                self._give_up(_Work(picture, held, record), decoded)
                continue
            prompt = self.task.prompt.fill(
                picture, self.destination.existing(picture) if self.task.prompt.reads_existing else ""
            )
            record = replace(record, width=decoded.width, height=decoded.height, prompt=prompt, sha256=decoded.digest)
            work, key = _Work(picture, held, record), (decoded.digest, prompt)
            if key in self._answers:
                self._told.append(self._written(work, *self._answers[key], seconds=0.0))
            elif key in self._in_work:
                self._in_work[key].append(work)
            else:
                self._in_work[key] = [work]
                inputs = self._inputs(prompt, decoded.part)
                yield BatchRequest(key, inputs, (processor.normalise(decoded.canvas),), self.task.sampling)

    def _inputs(self, prompt: str, image: ImagePart) -> "ModelInputs":
        processor = self.engine.processor
        if processor.chat_template is None:  # a base model
            return processor.raw(prompt, (image,))
        return processor(Conversation.ask(prompt, (image,), self.task.system))

    def _answered(self, work: _Work, reply: BatchReply) -> CaptionEvent:
        if reply.error is not None:
            self._give_up(work, reply.error)
            return self._told.pop()
        key = (work.record.sha256, work.record.prompt)
        seconds = 0.0 if key in self._answers else reply.seconds
        self._answers[key] = (reply.text, reply.completion_tokens)
        return self._written(work, reply.text, reply.completion_tokens, seconds=seconds)

    def _written(self, work: _Work, answer: str, tokens: int, *, seconds: float) -> CaptionEvent:
        record = replace(work.record, caption=self.task.polish(answer), tokens=tokens, seconds=seconds)
        try:
            return Captioned(record, work.held.write(record))
        except MllamaError as error:
            if is_full(error):
                raise
            return self.failed(record, error.message, error.hint)

    def _give_up(self, work: _Work, error: MllamaError) -> None:
        # The name stands beside the reason everywhere: it need not stand in it too.
        reason = error.message.removeprefix(f"{Path(work.picture.path)} ")
        event = self.failed(work.record, reason, error.hint)
        work.held.drop(event.record)
        self._told.append(event)
