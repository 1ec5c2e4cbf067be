"""Running out of memory: fewer slots, but no answer lost or changed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import run
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.sampling import PendingTokens, Sampler
from mllama_cli.engine.vision import ImageCache
from mllama_cli.model.cache import KVCache
from mllama_cli.model.text import MllamaTextModel
from tests.engine.batch.asking import alone, by_key, fail_once, requests_for

SHORTAGES: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 12"),
    MemoryError,
]


@pytest.mark.parametrize(
    ("where", "what", "call"),
    [
        (ImageCache, "encode_steps", 1),
        (ImageCache, "get_group", 2),
        (KVCache, "reserve", 2),
        (KVCache, "reserve", 9),
        (MllamaTextModel, "run", 1),
        (MllamaTextModel, "run", 4),
        (Slots, "admit", 1),
        (Slots, "admit", 4),
        (Slots, "step", 3),
        (Slots, "step", 20),
        (Sampler, "admit", 2),
        (Sampler, "launch", 5),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_batch_continues_in_fewer_slots(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: type, what: str, call: int
) -> None:
    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    calls = fail_once(monkeypatch, where, what, call, SHORTAGES[call % len(SHORTAGES)]())
    counts: list[int] = []
    assert by_key(run_batch(engine.model, iter(requests), slots=5, on_slots=counts.append)) == expected
    assert len(calls) > call
    assert len(counts) == 1
    assert 1 <= counts[0] < 5


def test_the_number_of_slots_settles_where_memory_suffices(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Slots.step

    def room_for_two(self: Slots) -> PendingTokens:
        if self.busy > 2:
            raise torch.OutOfMemoryError
        return step(self)

    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    monkeypatch.setattr(Slots, "step", room_for_two)
    counts: list[int] = []
    assert by_key(run_batch(engine.model, requests, slots=12, on_slots=counts.append)) == expected
    assert counts[-1] == 2
    assert counts == sorted(counts, reverse=True)


def test_a_request_too_large_for_this_machine_is_reported_and_the_rest_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = MllamaTextModel.run_steps

    def no_room_for_long_prompts(self: MllamaTextModel, ids: Tensor, *rest: Any) -> Tensor:
        if ids.shape[1] > 500:
            raise MemoryError
        return read(self, ids, *rest)

    good = requests_for(engine)
    huge = BatchRequest("huge", engine.processor(Conversation.ask("x" * 600)), sampling=Sampling(max_tokens=3))
    expected = {request.key: alone(engine, request) for request in good}
    monkeypatch.setattr(MllamaTextModel, "run_steps", no_room_for_long_prompts)
    replies = {reply.key: reply for reply in run_batch(engine.model, [*good[:5], huge, *good[5:]], slots=4)}
    assert isinstance(replies.pop("huge").error, MemoryShortageError)
    assert {key: reply.ids for key, reply in replies.items()} == expected


def test_a_request_is_answered_once_wherever_its_start_ran_out_of_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler with a repetition penalty holds a table on the device."""
    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    fail_once(monkeypatch, Sampler, "admit", 2)
    replies = list(run_batch(engine.model, requests, slots=4))
    assert sorted(str(reply.key) for reply in replies) == sorted(map(str, expected))
    assert {reply.key: reply.ids for reply in replies} == expected


def test_errors_that_are_not_about_this_memory_are_raised(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def source() -> Iterator[BatchRequest]:
        yield requests_for(engine)[0]
        raise MemoryError("the caller's own")

    with pytest.raises(MemoryError, match="the caller's own"):
        list(run_batch(engine.model, source(), slots=2))

    def broken(self: Slots) -> PendingTokens:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Slots, "step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(run_batch(engine.model, requests_for(engine), slots=2))


def test_running_out_of_memory_before_there_are_slots_is_an_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*arguments: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "automatic_slots", no_room)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        list(run_batch(engine.model, requests_for(engine)))
