"""Answers that somebody watches never start again when memory runs out; one of them fails only as the last resort."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.admission import Admission
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.batch.watched import FULL_TILES, tiles_between_steps
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.sampling import PendingTokens, Sampler
from mllama_cli.engine.vision import ImageCache
from mllama_cli.model.text import MllamaTextModel
from mllama_cli.processing.image_processor import ImageTiles
from tests.engine.batch.asking import CONVERSATIONS, RED, Asked, advance_until, fail_once, memory_of, run, tokens_alone
from tests.engine.conftest import picture

pytestmark = pytest.mark.usefixtures("tokens_read")


def watched(engine: Engine, count: int = 3, most: int = 12) -> list[Asked]:
    sampling = Sampling(max_tokens=most, temperature=0.9, seed=4)
    return [Asked(engine, CONVERSATIONS[number], sampling) for number in range(count)]


@pytest.mark.parametrize("call", [1, 3, 8])
@pytest.mark.parametrize(
    ("where", "what"),
    [
        (ImageCache, "encode_steps"),
        (MllamaTextModel, "run"),
        (Slots, "admit"),
        (Slots, "choose"),
        (Slots, "step"),
        (Sampler, "admit"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_memory_that_runs_out_once_changes_no_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: type, what: str, call: int
) -> None:
    asked = [*watched(engine), *(Asked(engine, talk, Sampling(max_tokens=9), streams=False) for talk in CONVERSATIONS)]
    with monkeypatch.context() as patch:
        fail_once(patch, where, what, call)
        run(Scheduler(engine.model, memory_of(engine, 4)), *asked)
    for request in asked[:3]:
        assert request.answers_as_alone(engine)
    for request in asked[3:]:  # they may start again, and then report their tokens again
        expected = tokens_alone(engine, request.inputs, request.sampling)
        assert request.tokens[-len(expected) :] == expected


@pytest.mark.parametrize("step", [2, 6])
def test_one_that_is_only_counted_starts_again_and_those_that_are_watched_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sampling = Sampling(max_tokens=12)
    shown = [Asked(engine, f"Hello {number}", sampling) for number in range(2)]
    hidden = Asked(engine, "Hello", sampling, streams=False)
    scheduler = Scheduler(engine.model, memory_of(engine, 3))
    steps, failed = Slots.step, []

    def failing(self: Slots) -> PendingTokens:
        if self.busy == 3 and not failed and len(hidden.tokens) == step:
            failed.append([len(request.tokens) for request in shown])
            raise torch.OutOfMemoryError
        return steps(self)

    monkeypatch.setattr(Slots, "step", failing)
    run(scheduler, *shown, hidden)
    assert failed
    # One step behind, the token that was under way still comes.
    assert len(hidden.tokens) - hidden.stats.completion_tokens in (step, step + 1)
    assert all(request.answers_as_alone(engine) for request in shown)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("room", [1, 2])
def test_the_latest_fails_when_there_is_nothing_else_to_free(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, images: bool, room: int
) -> None:
    step = Slots.step

    def limited(self: Slots) -> PendingTokens:
        if self.busy > room:
            raise torch.OutOfMemoryError
        return step(self)

    talks = [Conversation.ask(f"Question {n}", (RED,) if images else ()) for n in range(3)]
    asked = [Asked(engine, talk, Sampling(max_tokens=12)) for talk in talks]
    scheduler = Scheduler(engine.model, memory_of(engine, 3))
    for request in asked:  # all have their slots before the first step
        scheduler.add(request)
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "step", lambda self: step(self) if scheduler.admission.admitted else limited(self))
        advance_until(scheduler, idle=True)
    for request in asked[:room]:
        assert request.answers_as_alone(engine)
    for request in asked[room:]:
        assert isinstance(request.error, MemoryShortageError)


def test_a_new_request_that_finds_no_memory_ends_none_that_is_watched(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = watched(engine, 1, 30)[0], Asked(engine, "Later", Sampling(max_tokens=5))
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    scheduler.add(first)
    advance_until(scheduler, [first])
    reserve = scheduler.admission._cache_for

    def no_room_beside_another(request: Any, *rest: Any) -> Any:
        if scheduler.active:
            raise torch.OutOfMemoryError
        return reserve(request, *rest)

    monkeypatch.setattr(scheduler.admission, "_cache_for", no_room_beside_another)
    run(scheduler, late)
    assert first.answers_as_alone(engine)
    assert late.answers_as_alone(engine)


def test_an_image_for_which_there_is_no_room_waits_for_the_answer_that_is_watched(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = Asked(engine, "Hello", Sampling(max_tokens=30)), watched(engine)[1]
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    encode = ImageCache.encode_steps

    def limited(self: ImageCache, image: ImagePart, tiles: ImageTiles | None = None) -> Iterator[int]:
        if scheduler.active:
            raise torch.OutOfMemoryError
        return encode(self, image, tiles)

    scheduler.add(first)
    advance_until(scheduler, [first])
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "encode_steps", limited)
        run(scheduler, late)
    assert first.answers_as_alone(engine)
    assert late.answers_as_alone(engine)


def test_one_that_outgrows_the_memory_alone_fails_and_the_next_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Slots.step

    def limited(self: Slots) -> PendingTokens:
        if any(caches.length > 600 for caches in self.caches):
            raise torch.OutOfMemoryError
        return step(self)

    monkeypatch.setattr(engine.model, "eos", frozenset())
    monkeypatch.setattr(Slots, "step", limited)
    huge, small = Asked(engine, "x" * 560, Sampling(max_tokens=90)), Asked(engine, "Hi", Sampling(max_tokens=60))
    run(Scheduler(engine.model, memory_of(engine, 1)), huge, small)
    assert isinstance(huge.error, MemoryShortageError)
    assert huge.tokens
    assert small.answers_as_alone(engine)


def test_answers_wait_for_a_few_parts_of_images_and_not_for_all(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a part has several layers."""
    most = tiles_between_steps("cuda", 64, watched=True, has_read=False)
    has_read: list[bool] = []

    def as_on_a_gpu(device: str, lacking: int, **state: bool) -> float:
        has_read.append(state["has_read"])
        return tiles_between_steps("cuda", lacking, **state)

    monkeypatch.setattr("mllama_cli.engine.batch.scheduler.tiles_between_steps", as_on_a_gpu)
    scheduler = Scheduler(engine.model, memory_of(engine, 12))
    encode, step = Admission.encode, Slots.step
    tiles: list[int] = []
    between: list[int] = []

    def counted(self: Admission) -> int:
        if scheduler.active:
            tiles.append(encode(self))
            return tiles[-1]
        return encode(self)

    def stepped(self: Slots, *arguments: Any) -> PendingTokens:
        between.append(sum(tiles))
        tiles.clear()
        return step(self, *arguments)

    monkeypatch.setattr(Admission, "encode", counted)
    monkeypatch.setattr(Slots, "step", stepped)
    sampling = Sampling(max_tokens=40, logit_bias=dict.fromkeys(engine.model.eos, -100.0))
    first = Asked(engine, "Hello", sampling)
    later = [Asked(engine, Conversation.ask("What?", (picture("red", (90 + n, 80)),)), sampling) for n in range(8)]
    scheduler.add(first)
    advance_until(scheduler, [first])
    run(scheduler, *later)
    assert 0 < max(between) < most + FULL_TILES
    assert sum(each > 0 for each in between) > 2
    assert 1 < has_read.count(True) <= 1 + len(later), "each prompt alone or with others"
    for request in (first, *later):
        assert request.answers_as_alone(engine)
