"""Answer several conversations together."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import FinishReason
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchReply, BatchRequest
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
    """Answer any number of requests, ``slots`` of them at a time (None: as many as memory allows and are useful).

    Requests are pulled when slots are free, on a GPU up to eight before that. Replies are yielded as answers end, not
    in order; the error of a single request is its reply. When memory runs out, requests in slots start again in fewer
    slots. Close the iterator to stop.

    Args:
        requests: may yield None if no request is ready yet, so that others continue. While all slots are free the next
            one is pulled at once, so the source should wait a little itself.
        refill: False leaves free slots empty until all answers have ended.
        on_slots: called with the number of slots when it is chosen and when it shrinks.
    """
    if slots is not None and slots < 1:
        raise ValueError(f"slots must be 1 or more, not {slots}")
    return Scheduler(model, requests, slots, refill, on_slots or (lambda count: None)).run()


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
