"""Memory that is no longer needed is free at once, without waiting for Python's garbage collector."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.batch.slots import SlotCaches, Slots
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.vision import ImageCache
from mllama_cli.model.cache import KVCache
from tests.engine.batch.asking import Asked, by_key, memory_of, requests_for, run
from tests.engine.conftest import picture


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()  # a GPU that is full does not wait for it
    yield
    gc.enable()


def remember(monkeypatch: pytest.MonkeyPatch, what: type[Any]) -> list[weakref.ref[Any]]:
    """Return a list that grows with each object of this class."""
    made: list[weakref.ref[Any]] = []
    initialise = what.__init__

    def noted(self: Any, *arguments: Any, **named: Any) -> None:
        initialise(self, *arguments, **named)
        made.append(weakref.ref(self))

    monkeypatch.setattr(what, "__init__", noted)
    return made


def alive(made: list[weakref.ref[Any]]) -> int:
    return sum(reference() is not None for reference in made)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("what", ["admit", "step"])
def test_what_failed_is_freed_before_it_is_tried_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    requests = requests_for(engine)
    failed: list[int] = []
    slots, caches = remember(monkeypatch, Slots), remember(monkeypatch, KVCache)
    original = getattr(Slots, what)

    def failing(self: Slots, *arguments: Any) -> Any:
        if not failed:
            failed.append(len(caches))
            raise torch.OutOfMemoryError
        assert alive(slots) == 1, "the old slots' memory is still held"
        assert alive(caches[: failed[0]]) == 0, "the old caches' memory is still held"
        return original(self, *arguments)

    monkeypatch.setattr(Slots, what, failing)
    assert len(by_key(run_batch(engine.model, requests, slots=3))) == len(requests)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("replies", [None, 1])
def test_a_batch_that_ends_or_is_closed_frees_everything_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, replies: int | None
) -> None:
    made = [remember(monkeypatch, what) for what in (Slots, KVCache, SlotCaches, ImageCache)]
    batch = run_batch(engine.model, requests_for(engine), slots=3)
    assert len(list(itertools.islice(batch, replies)))
    batch.close()
    del batch
    assert all(made)
    assert [alive(references) for references in made] == [0] * len(made)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("after", range(0, 40, 3))
def test_a_cancelled_request_that_its_caller_keeps_holds_no_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    caches = remember(monkeypatch, KVCache)
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    asked = [Asked(engine, Conversation.ask("x" * 20, (picture(),)), Sampling(max_tokens=20)) for _ in range(3)]
    for request in asked:
        scheduler.add(request)
    for _ in range(after):
        scheduler.advance()
    for request in asked:
        scheduler.cancel(request)
    scheduler.advance()  # which takes note of tokens that were under way
    assert scheduler.idle
    scheduler.admission.forget_caches()
    assert alive(caches) == 0
    assert scheduler.admission.cache_bytes == 0


@pytest.mark.usefixtures("_no_collector")
def test_a_request_whose_image_cannot_be_read_holds_no_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = remember(monkeypatch, KVCache)
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    asked = Asked(engine, Conversation.ask("?", (ImagePart(b"no picture", "bad.jpg"),)), Sampling(max_tokens=3))
    run(scheduler, asked)
    assert isinstance(asked.error, ImageError)
    assert alive(caches) == 0
