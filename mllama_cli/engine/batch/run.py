"""Several conversations answered at once, with different lengths and numbers of images."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import FinishReason
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchReply as BatchReply
from mllama_cli.engine.batch.request import BatchRequest as BatchRequest
from mllama_cli.engine.batch.scheduler import Scheduler

if TYPE_CHECKING:
    from mllama_cli.engine.engine import Engine


@dataclass
class Reply:
    """One conversation's answer."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "length"


def run_batch(
    engine: "Engine",
    requests: Iterable[BatchRequest | None],
    *,
    slots: int | None = None,
    refill: bool = True,
    on_slots: Callable[[int], None] | None = None,
) -> Generator[BatchReply]:
    """Answer any number of requests, ``slots`` of them at a time (None: as many as memory allows and ever needed).

    Requests are pulled when slots are free, on a GPU up to eight before that; each reply is yielded as soon as its
    answer ends: not in order. A request may be None: "nothing is ready yet", and the others go on meanwhile (with none
    in a slot it is asked again at once, so it should wait a little itself). Errors of a single request are its reply;
    when memory runs out, what is in flight starts again in fewer slots, and ``on_slots`` hears how many there are.
    Without ``refill`` free slots stay empty until all answers have ended. Close the iterator to stop.
    """
    if slots is not None and slots < 1:
        raise ValueError(f"slots must be 1 or more, not {slots}")
    return Scheduler(engine, requests, slots, refill, on_slots or (lambda count: None)).run()


def answer_batch(
    engine: "Engine", conversations: Sequence[Conversation], sampling: Sampling | None = None
) -> list[Reply]:
    """Answer every conversation, in order.

    Each row has its own sampler, so a row's answer does not depend on what stands beside it. Raises the error of the
    first conversation that cannot be answered.
    """
    inputs = map(engine.processor, conversations)
    requests = [BatchRequest(place, item, sampling=sampling) for place, item in enumerate(inputs)]
    replies: list[Reply | None] = [None] * len(requests)
    for reply in run_batch(engine, requests):
        if reply.error is not None:
            raise reply.error
        assert isinstance(reply.key, int)
        replies[reply.key] = Reply(reply.text, reply.ids, reply.finish_reason)
    return [reply for reply in replies if reply is not None]
