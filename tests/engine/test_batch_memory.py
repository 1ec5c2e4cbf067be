"""The number of slots, and running out of memory: fewer slots, but no answer lost or changed."""

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import capacity, scheduler
from mllama_cli.engine.batch.capacity import automatic_slots, slot_bytes
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.device import is_out_of_memory
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.sampling import Sampler
from mllama_cli.engine.vision import ImageCache
from tests.engine.conftest import fail_once, picture
from tests.engine.test_batch_refill import alone, by_key, requests_for

SHORTAGES: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 12"),
    MemoryError,
]


def test_a_real_failed_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be reported later", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("The wordlist is out of memory lane", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_only_failed_allocations_count(message: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is expected
    assert not is_out_of_memory(ValueError(message))


@pytest.mark.parametrize("shortage", SHORTAGES, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize(
    ("where", "what", "call"),
    [(ImageCache, "encode", 1), (Slots, "fill", 1), (Slots, "fill", 4), (Slots, "step", 3), (Slots, "step", 20)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_batch_continues_in_fewer_slots(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    where: type,
    what: str,
    call: int,
    shortage: Callable[[], BaseException],
) -> None:
    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    calls = fail_once(monkeypatch, where, what, call, shortage)
    counts: list[int] = []
    assert by_key(run_batch(engine.model, iter(requests), slots=5, on_slots=counts.append)) == expected
    assert len(calls) > call
    assert len(counts) == 1
    assert 1 <= counts[0] < 5


def test_the_number_of_slots_settles_where_memory_suffices(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Slots.step

    def room_for_two(self: Slots, tokens: list[int]) -> torch.Tensor:
        if self.busy > 2:
            raise torch.OutOfMemoryError
        return step(self, tokens)

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
    fill = Slots.fill

    def no_room_for_long_prompts(self: Slots, prompts: Any) -> torch.Tensor:
        if any(len(prompt.ids) > 500 for prompt in prompts):
            raise MemoryError
        return fill(self, prompts)

    good = requests_for(engine)
    huge = BatchRequest("huge", engine.processor(Conversation.ask("x" * 600)), sampling=Sampling(max_tokens=3))
    expected = {request.key: alone(engine, request) for request in good}
    monkeypatch.setattr(Slots, "fill", no_room_for_long_prompts)
    replies = {reply.key: reply for reply in run_batch(engine.model, [*good[:5], huge, *good[5:]], slots=4)}
    assert isinstance(replies.pop("huge").error, MemoryShortageError)
    assert {key: reply.ids for key, reply in replies.items()} == expected


def test_what_failed_is_freed_before_it_is_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Slots]] = []
    fill = Slots.fill

    def failing(self: Slots, prompts: Any) -> torch.Tensor:
        if not seen:
            seen.append(weakref.ref(self))
            raise torch.OutOfMemoryError
        assert seen[0]() is None, "the old slots' memory is still held"
        return fill(self, prompts)

    monkeypatch.setattr(Slots, "fill", failing)
    gc.disable()
    try:
        assert len(by_key(run_batch(engine.model, requests_for(engine), slots=3))) == len(requests_for(engine))
    finally:
        gc.enable()


@pytest.mark.parametrize("replies", [None, 1])
def test_a_batch_that_ends_or_is_closed_frees_its_slots_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, replies: int | None
) -> None:
    made: list[weakref.ref[Slots]] = []
    fill = Slots.fill

    def noted(self: Slots, prompts: Any) -> torch.Tensor:
        made.append(weakref.ref(self))
        return fill(self, prompts)

    monkeypatch.setattr(Slots, "fill", noted)
    gc.collect()
    gc.disable()  # a GPU that is full does not wait for it
    try:
        batch = run_batch(engine.model, requests_for(engine), slots=3)
        assert len(list(itertools.islice(batch, replies)))
        batch.close()
        del batch
        assert made
        assert made[0]() is None
    finally:
        gc.enable()


def test_errors_that_are_not_about_this_memory_are_raised(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def source() -> Iterator[BatchRequest]:
        yield requests_for(engine)[0]
        raise MemoryError("the caller's own")

    with pytest.raises(MemoryError, match="the caller's own"):
        list(run_batch(engine.model, source(), slots=2))

    def broken(self: Slots, tokens: list[int]) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Slots, "step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(run_batch(engine.model, requests_for(engine), slots=2))


def test_automatic_slots_fill_the_free_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    each = slot_bytes(engine.config, engine.dtype.itemsize, 100 + 200, 1)
    text, vision = engine.config.text_config, engine.config.vision_config
    assert vision is not None
    held = 4 * text.num_key_value_heads * text.head_dim * 2 * (300 * 3 + 2 * 4 * vision.tokens_per_tile)
    assert held < each < 1.2 * held, "self and cross keys and values, and logits"
    counts = []
    for free in (0, 2**30, 100 * 2**30):
        monkeypatch.setattr(capacity, "free_bytes", lambda device, free=free: free)
        counts.append(automatic_slots(engine.model, 100, 1, 200))
    assert counts[0] == 1
    assert counts[-1] == capacity.MAX_SLOTS["cpu"]
    monkeypatch.setattr(capacity, "slot_bytes", lambda *_: 100 * 2**20)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 4 * 2**30)
    assert 10 < automatic_slots(engine.model, 100, 1, 200) < 30


def test_the_number_of_slots_is_reported(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "automatic_slots", lambda *_: 3)
    counts: list[int] = []
    inputs = engine.processor(Conversation.ask("?", (picture(),)))
    requests = [BatchRequest(key, inputs, sampling=Sampling(max_tokens=2)) for key in range(5)]
    assert len(list(run_batch(engine.model, iter(requests), on_slots=counts.append))) == 5
    assert len(list(run_batch(engine.model, requests[:2], on_slots=counts.append))) == 2
    assert counts == [3, 2], "two requests need no third slot"


def test_a_request_is_answered_once_wherever_its_start_ran_out_of_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler with a repetition penalty holds a table on the device."""
    calls = []
    admit = Sampler.admit

    def failing(self: Sampler, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        admit(self, *arguments)

    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    monkeypatch.setattr(Sampler, "admit", failing)
    replies = list(run_batch(engine.model, requests, slots=4))
    assert sorted(str(reply.key) for reply in replies) == sorted(map(str, expected))
    assert {reply.key: reply.ids for reply in replies} == expected


def test_running_out_of_memory_before_there_are_slots_is_an_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: Engine, *arguments: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scheduler, "automatic_slots", no_room)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        list(run_batch(engine.model, requests_for(engine)))
