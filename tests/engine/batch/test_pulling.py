"""A batch pulls requests when it needs them, and what is wrong with one concerns no other."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ImageError, MemoryShortageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import run
from mllama_cli.engine.batch.request import BatchReply, BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.sampling import PendingTokens
from mllama_cli.engine.vision import ImageCache
from mllama_cli.processing.image_processor import ImageTiles
from tests.engine.batch.asking import alone, by_key, fail_once, requests_for
from tests.engine.conftest import picture


def test_answers_do_not_wait_for_a_source_that_is_not_ready(engine: Engine) -> None:
    first = BatchRequest("first", engine.processor(Conversation.ask("Hello")), sampling=Sampling(max_tokens=20))
    second = BatchRequest(
        "second", engine.processor(Conversation.ask("Hi", (picture(),))), sampling=Sampling(max_tokens=2)
    )
    asked = []

    def source() -> Iterator[BatchRequest | None]:
        yield first
        while "first" not in asked:
            yield None
        yield second

    for reply in run_batch(engine.model, source(), slots=2):
        asked.append(reply.key)
    assert asked == ["first", "second"]


def test_a_bad_image_fails_only_its_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_for(engine)
    bad = requests[1].inputs.images[0].digest
    tiles = engine.processor.tiles

    def failing(image: ImagePart) -> Any:
        if image.digest == bad:
            raise ImageError("It cannot be read")
        return tiles(image)

    monkeypatch.setattr(engine.processor, "tiles", failing)
    replies = {reply.key: reply for reply in run_batch(engine.model, requests, slots=3)}
    assert len(replies) == len(requests)
    for request in requests:
        hit = bad in [image.digest for image in request.inputs.images]
        assert isinstance(replies[request.key].error, ImageError) == hit


@pytest.mark.parametrize(
    ("where", "what", "call"), [(ImageCache, "encode_steps", 2), (Slots, "admit", 2), (Slots, "step", 3)]
)
def test_memory_that_runs_out_costs_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: type, what: str, call: int
) -> None:
    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    fail_once(monkeypatch, where, what, call)
    counts: list[int] = []
    assert by_key(run_batch(engine.model, iter(requests), slots=5, on_slots=counts.append)) == expected
    assert len(counts) == 1


def test_replies_come_while_requests_are_still_taken_in(engine: Engine) -> None:
    taken = []

    def source() -> Iterator[BatchRequest]:
        for number in range(30):
            taken.append(number)
            yield BatchRequest(number, engine.processor(Conversation.ask("Hi")), sampling=Sampling(max_tokens=1))

    replies: Iterator[BatchReply] = run_batch(engine.model, source(), slots=4)
    next(replies)
    assert len(taken) < 30


def test_some_requests_are_pulled_before_there_is_a_slot_for_them(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run.PULLED_AHEAD, "cpu", 3)
    monkeypatch.setattr(engine.model, "eos", frozenset())  # so that all answers have their maximum length
    requests = [
        BatchRequest(number, engine.processor(Conversation.ask(f"Hi {number}")), sampling=Sampling(max_tokens=4))
        for number in range(20)
    ]
    expected = {request.key: alone(engine, request) for request in requests}
    taken: list[int] = []

    def source() -> Iterator[BatchRequest]:
        for number, request in enumerate(requests):
            taken.append(number)
            yield request

    replies = run_batch(engine.model, source(), slots=2)
    first = next(replies)
    assert 2 + 3 <= len(taken) <= 2 + 2 + 3, "two have ended, two have their slots, and three wait"
    assert by_key(chain([first], replies)) == expected


@pytest.mark.parametrize("slots", [1, 4])
def test_only_the_request_that_outgrows_the_memory_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    good = requests_for(engine)
    huge = BatchRequest("huge", engine.processor(Conversation.ask("x" * 600)), sampling=Sampling(max_tokens=20))
    step = Slots.step

    def limited(self: Slots) -> PendingTokens:
        if any(caches.length > len(huge.inputs.ids) + 5 for caches in self.caches):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self)

    expected = {request.key: alone(engine, request) for request in good}
    monkeypatch.setattr(Slots, "step", limited)
    replies = {reply.key: reply for reply in run_batch(engine.model, [*good[:5], huge, *good[5:]], slots=slots)}
    assert isinstance(replies.pop("huge").error, MemoryShortageError)
    assert {key: reply.ids for key, reply in replies.items()} == expected


@pytest.mark.parametrize("slots", [1, 4])
def test_an_image_that_does_not_fit_next_to_an_answer_waits_for_its_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    encode, initialise = ImageCache.encode_steps, Slots.__init__
    live: list[Slots] = []

    def recorded(self: Slots, *given: Any) -> None:
        initialise(self, *given)
        live[:] = [self]

    def limited(self: ImageCache, image: ImagePart, tiles: ImageTiles | None = None) -> Iterator[int]:
        if live and live[0].busy:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(self, image, tiles)

    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    monkeypatch.setattr(Slots, "__init__", recorded)
    monkeypatch.setattr(ImageCache, "encode_steps", limited)
    assert by_key(run_batch(engine.model, requests, slots=slots)) == expected


@pytest.mark.parametrize("slots", [2, 4])
def test_one_long_answer_keeps_no_slot_idle(engine: Engine, monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    lengths = [60 if number % slots == 0 else 6 for number in range(6 * slots)]
    requests = [
        BatchRequest(n, engine.processor(Conversation.ask("Hello")), sampling=Sampling(max_tokens=most))
        for n, most in enumerate(lengths)
    ]
    busy: list[int] = []
    step = Slots.step
    monkeypatch.setattr(engine.model, "eos", frozenset())  # so that all answers have their maximum length
    monkeypatch.setattr(Slots, "step", lambda self: busy.append(self.busy) or step(self))
    replies = list(run_batch(engine.model, requests, slots=slots))
    assert sorted(len(reply.ids) for reply in replies) == sorted(lengths)
    assert sum(busy) / len(busy) > 0.5 * slots
