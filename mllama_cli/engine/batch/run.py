"""Several conversations answered at once, with different lengths and numbers of images."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import FinishReason
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchReply as BatchReply
from mllama_cli.engine.batch.request import BatchRequest as BatchRequest
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.model import LoadedModel


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
    refill: bool = True,
    on_slots: Callable[[int], None] | None = None,
) -> Generator[BatchReply]:
    """Answer any number of requests, ``slots`` of them at a time (None: as many as memory allows and there is use for).

    Requests are pulled when slots are free, on a GPU up to eight before that. Each reply is yielded as soon as its
    answer ends: not in order. Errors of a single request are its reply. When memory runs out, what is in flight starts
    again in fewer slots. Close the iterator to stop.

    Args:
        requests: None among them means that nothing is ready yet; the others continue meanwhile. With none in a slot
            the next one is asked for at once, so the source should wait a little itself.
        refill: False leaves free slots empty until all answers have ended.
        on_slots: called with the number of slots, at first and when it shrinks.
    """
    if slots is not None and slots < 1:
        raise ValueError(f"slots must be 1 or more, not {slots}")
    return Scheduler(model, requests, slots, refill, on_slots or (lambda count: None)).run()


def answer_batch(
    model: LoadedModel, conversations: Sequence[Conversation], sampling: Sampling | None = None
) -> list[Reply]:
    """Answer every conversation, in order.

    Each has its own sampler, so an answer does not depend on its neighbours. Raise the error of the first conversation
    that cannot be answered.
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
