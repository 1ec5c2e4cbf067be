"""The captioning pipeline: a job for each image is acquired, decoded, asked about and written.

The stages are generators, in this order in ``CaptionPipeline``. Each pulls from the one before it, so that images are
locked and decoded only shortly before the model needs them. Events of the earlier stages go into one queue, which the
last stage empties.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from mllama_cli.captioning.asker import Answer, Asker, Question
from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.destinations import CaptionDestination, Lease, LeaseRefusedError
from mllama_cli.captioning.listing import CaptionPlan, ImageEntry
from mllama_cli.captioning.postprocess import Postprocess
from mllama_cli.captioning.prompts import PromptTemplate
from mllama_cli.core.caption_events import (
    BatchSize,
    Captioned,
    CaptionEvent,
    CaptionFailed,
    CaptionRecord,
    CaptionSkipped,
    CaptionsPlanned,
)
from mllama_cli.core.conversation import MeasuredImage
from mllama_cli.core.errors import MllamaError
from mllama_cli.system.files import is_disk_full

MAX_KEPT_ANSWERS = 50_000
"""Answers that are kept for identical images, so that memory does not grow with the number of images."""


@dataclass(eq=False)
class Job:
    """An image in progress. ``lease`` is held from the first stage to the last; each stage adds to ``record``."""

    entry: ImageEntry
    lease: Lease
    record: CaptionRecord

    @property
    def question(self) -> tuple[str, str]:
        """Return what the answer depends on: jobs that are equal here are asked about once."""
        return self.record.sha256, self.record.prompt


def caption_images(
    plan: CaptionPlan,
    asker: Asker,
    destination: CaptionDestination,
    prompt: PromptTemplate,
    postprocess: Postprocess,
    *,
    pool: DecodingPool,
) -> Generator[CaptionEvent]:
    """Yield CaptionsPlanned first, then an event for each image that was not done already.

    A bad image is an event, not an error. Close the generator to stop the run: captions that are written stay, and
    images in progress are released.

    Args:
        pool: decodes the images; it is closed at the end.

    Raises:
        CaptionError: the disk is full.
        TemplateError, DeviceError, ...: the model cannot caption any image.
    """
    pipeline = CaptionPipeline(asker, destination, prompt, postprocess)
    exhausted = False
    try:
        yield CaptionsPlanned(plan.total, plan.skipped)
        for folder, reason in plan.unreadable:
            yield pipeline.failed(CaptionRecord(folder, model=asker.model), f"cannot be listed: {reason}")
        yield from pipeline.run(plan.pending, pool)
        exhausted = True
    finally:
        destination.finish(exhausted=exhausted, complete=exhausted and not pipeline.failures)


class CaptionPipeline:
    """The stages and their shared state."""

    def __init__(
        self, asker: Asker, destination: CaptionDestination, prompt: PromptTemplate, postprocess: Postprocess
    ) -> None:
        self.asker = asker
        self.destination = destination
        self.prompt = prompt
        self.postprocess = postprocess
        self.failures = 0
        self._events: deque[CaptionEvent] = deque()
        self._in_progress: set[Job] = set()
        self._waiting: dict[object, list[Job]] = {}
        """Jobs whose question is being answered, by ``Job.question``."""
        self._answers: dict[object, Answer] = {}
        """The last answers, by ``Job.question``."""

    def run(self, entries: Iterable[ImageEntry | None], pool: DecodingPool) -> Generator[CaptionEvent]:
        """Yield an event for each image. Close the generator to stop; images in progress are then released.

        Args:
            entries: None in it means that the next image is not there yet.
            pool: decodes the images; it is closed at the end.
        """
        try:
            with pool, closing(self.ask(self.decode(self.acquire(entries), pool))) as answered:
                yield from self.write(answered)
        finally:
            self.release_all()

    def acquire(self, entries: Iterable[ImageEntry | None]) -> Iterator[Job | None]:
        """Stage 1: yield a job for each image that this run could lock."""
        for entry in entries:
            if entry is None:
                yield None
                continue
            record = CaptionRecord(entry.path, model=self.asker.model)
            try:
                lease = self.destination.acquire(entry)
            except LeaseRefusedError as refusal:
                self._events.append(CaptionSkipped(entry.path, str(refusal)))
            except MllamaError as error:
                if is_disk_full(error):
                    raise
                self._events.append(self.failed(record, error.message, error.hint, error.kind))
            else:
                job = Job(entry, lease, record)
                self._in_progress.add(job)
                yield job

    def decode(self, jobs: Iterable[Job | None], pool: DecodingPool) -> Iterator[tuple[Job, MeasuredImage] | None]:
        """Stage 2: yield each job with its image, decoded ahead by ``pool``; None while the next is not ready."""
        asker = self.asker
        decoded = pool.decode(
            jobs, asker.image_config, canvases=asker.draws_canvases, is_busy=lambda: bool(self._waiting)
        )
        for item in decoded:
            if item is None:
                yield None
                continue
            job, decoding = item
            try:
                image = decoding.result()
                existing = self.destination.existing(job.entry) if self.prompt.reads_existing else ""
                prompt = self.prompt.fill(job.entry, existing)
            except MllamaError as error:
                self._events.append(self._give_up(job, error))
                continue
            job.record = replace(job.record, width=image.width, height=image.height, prompt=prompt, sha256=image.digest)
            yield job, image

    def ask(self, decoded: Iterable[tuple[Job, MeasuredImage] | None]) -> Generator[tuple[Job, Answer]]:
        """Stage 3: yield each job with the model's answer, in the order of the answers."""
        answers = self.asker.ask(self._questions(decoded), lambda size: self._events.append(BatchSize(size)))
        with closing(answers):
            for answer in answers:
                again = replace(answer, seconds=0.0)  # equal images cost nothing more
                if answer.error is None:
                    self._answers[answer.key] = again
                    if len(self._answers) > MAX_KEPT_ANSWERS:
                        del self._answers[next(iter(self._answers))]  # the oldest
                for job in self._waiting.pop(answer.key):
                    yield job, answer
                    answer = again

    def _questions(self, decoded: Iterable[tuple[Job, MeasuredImage] | None]) -> Iterator[Question | None]:
        """Yield each question once for all jobs that share it; write at once what has been answered before."""
        for item in decoded:
            if item is None:
                yield None
                continue
            job, image = item
            if job.question in self._answers:
                self._events.append(self._store(job, self._answers[job.question]))
            elif job.question in self._waiting:
                self._waiting[job.question].append(job)
            else:
                self._waiting[job.question] = [job]
                yield Question(job.question, job.record.prompt, image)

    def write(self, answered: Iterable[tuple[Job, Answer]]) -> Iterator[CaptionEvent]:
        """Stage 4: write each caption. Yield its event after those of the other stages."""
        for job, answer in answered:
            yield from self._queued_events()
            yield self._store(job, answer)
        yield from self._queued_events()

    def _store(self, job: Job, answer: Answer) -> Captioned | CaptionFailed:
        if answer.error is not None:
            return self._give_up(job, answer.error)
        self._in_progress.discard(job)
        caption = self.postprocess(answer.text)
        record = replace(job.record, caption=caption, tokens=answer.tokens, seconds=answer.seconds)
        try:
            written_to = job.lease.write(record, answer.finish_reason)
            return Captioned(record, written_to, answer.finish_reason, answer.prompt_tokens, answer.probabilities)
        except MllamaError as error:
            if is_disk_full(error):
                raise
            return self.failed(record, error.message, error.hint, error.kind)

    def _give_up(self, job: Job, error: MllamaError) -> CaptionFailed:
        # Failures are shown with the path first: don't repeat it.
        path = job.entry.path
        reason = error.message.removeprefix(f"{path if '://' in path else Path(path)} ")
        event = self.failed(job.record, reason, error.hint, error.kind)
        self._in_progress.discard(job)
        job.lease.release(event.record)
        return event

    def failed(self, record: CaptionRecord, reason: str, hint: str = "", kind: str = "caption") -> CaptionFailed:
        """Count a failure and return its event."""
        self.failures += 1
        return CaptionFailed(replace(record, error=reason), hint, kind)

    def release_all(self) -> None:
        """Release the leases of the jobs that will not be finished."""
        for job in self._in_progress:
            job.lease.release()
        self._in_progress.clear()

    def _queued_events(self) -> Iterator[CaptionEvent]:
        while self._events:
            yield self._events.popleft()
