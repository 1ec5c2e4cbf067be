"""Answer several conversations together."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence, Sized
from dataclasses import dataclass

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event, FinishReason, GenerationStats
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.capacity import Memory, automatic_slots
from mllama_cli.engine.batch.request import BatchReply, BatchRequest, Request
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.forward import MAX_PREFILL_BATCH
from mllama_cli.engine.model import LoadedModel

PULLED_AHEAD = {"cpu": 0, "cuda": MAX_PREFILL_BATCH}
"""Requests that are pulled before there is a slot for them, so that a GPU need not wait for them."""


@dataclass
class Reply:
    """One conversation's answer."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "length"


def run_batch(
    model: LoadedModel,
    requests: Iterable[BatchRequest | None],
    *,
    slots: int | None = None,
    on_slots: Callable[[int], None] | None = None,
) -> Generator[BatchReply]:
    """Answer any number of requests, ``slots`` of them at a time (None: as many as memory allows and are useful).

    Requests are pulled when slots are free, on a GPU up to eight before that. Replies are yielded as answers end, not
    in order; the error of a single request is its reply. When memory runs out, requests in slots start again in fewer
    slots. Close the iterator to stop. A KeyboardInterrupt is raised after the replies to what has ended by then.

    Args:
        requests: may yield None if no request is ready yet, so that others continue. While all slots are free the next
            one is pulled at once, so the source should wait a little itself.
        on_slots: called with the number of slots when it is chosen and when it shrinks.
    """
    if slots is not None and slots < 1:
        raise ValueError(f"slots must be 1 or more, not {slots}")
    replies: deque[BatchReply] = deque()
    source = iter(requests)
    for first in source:
        if first is not None:
            break
    else:
        return
    scheduler = Scheduler(model, Memory.of(model, slots or _slots_for(model, first, requests), serves=False))
    most = scheduler.most
    if slots is None and on_slots is not None:
        on_slots(most)
    scheduler.add(_Request(model, first, replies))
    more, most_ahead = True, PULLED_AHEAD[model.device.type]
    ended: deque[BatchReply] = deque()

    def pull(ahead: int) -> bool:
        """Add requests until ``ahead`` wait for a slot or none is ready; return whether more may come."""
        while scheduler.room + ahead > 0:
            following = next(source, _END)
            if following is None:
                break
            if not isinstance(following, BatchRequest):
                return False
            scheduler.add(_Request(model, following, replies))
        return True

    try:
        while more or replies or not scheduler.idle:
            more = more and pull(0)
            ended.extend(replies)
            replies.clear()
            if not scheduler.idle:
                scheduler.advance()
            # A GPU computes what was launched while the caller takes what ended before, and while requests are pulled.
            more = more and (not most_ahead or pull(most_ahead))
            if scheduler.most != most and on_slots is not None:
                on_slots(scheduler.most)
            most = scheduler.most
            while ended:
                yield ended.popleft()
    except KeyboardInterrupt:
        yield from (*ended, *replies)
        raise
    finally:  # free memory at once: an image that is being encoded refers to what holds it
        scheduler.admission.withdraw()


_END = object()


def answer_batch(
    model: LoadedModel, conversations: Sequence[Conversation], sampling: Sampling | None = None
) -> list[Reply]:
    """Return the answers to all conversations, in order.

    An answer does not depend on the others. Raise the error of the first conversation that cannot be answered.
    """
    inputs = map(model.processor, conversations)
    requests = [BatchRequest(index, item, sampling=sampling) for index, item in enumerate(inputs)]
    replies: list[Reply | None] = [None] * len(requests)
    for reply in run_batch(model, requests):
        if reply.error is not None:
            raise reply.error
        assert isinstance(reply.key, int)
        replies[reply.key] = Reply(reply.text, reply.ids, reply.finish_reason)
    return [reply for reply in replies if reply is not None]


def _slots_for(model: LoadedModel, first: BatchRequest, requests: object) -> int:
    """Return the number of slots that suit requests like the first one."""
    if first.inputs.images:
        for _ in model.load(vision=True):
            pass
    sampling = first.sampling or model.default_sampling()
    slots = automatic_slots(model, len(first.inputs.ids), len(first.inputs.images), sampling.max_tokens)
    return min(slots, max(1, len(requests))) if isinstance(requests, Sized) else slots


class _Request(Request):
    """A request of ``run_batch``, which appends its reply to ``replies``."""

    def __init__(self, model: LoadedModel, asked: BatchRequest, replies: deque[BatchReply]) -> None:
        sampling = asked.sampling or model.default_sampling()
        super().__init__(asked.inputs, sampling, tiles=asked.tiles, streams=False)
        self._key, self._replies = asked.key, replies

    def report(self, event: Event | MllamaError) -> None:
        if isinstance(event, MllamaError):
            self._replies.append(BatchReply(self._key, prompt_tokens=len(self.ids), error=event))
        elif isinstance(event, GenerationStats):
            assert self.answer is not None
            self._replies.append(
                BatchReply(
                    self._key,
                    self.answer.text,
                    tuple(self.answer.ids),
                    event.finish_reason,
                    event.prompt_tokens,
                    time.perf_counter() - self.started,
                    logprobs=tuple(self.chosen),
                )
            )
