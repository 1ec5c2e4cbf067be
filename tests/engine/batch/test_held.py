"""Prompts that are ready shortly one after the other are read together where that is worth waiting for."""

from typing import Any

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import reading
from mllama_cli.engine.batch.reading import Reading
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.engine import Engine
from tests.engine.batch.asking import Asked, advance_until, memory_of, run
from tests.engine.conftest import picture


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts in each pass, as they are read."""
    original, sizes = Reading.advance, []

    def noted(self: Reading, *arguments: Any, **named: Any) -> reading.Read | None:
        read = original(self, *arguments, **named)
        if read is not None:
            sizes.append(len(read[0]))
        return read

    monkeypatch.setattr(Reading, "advance", noted)
    return sizes


def unwatched(engine: Engine, lengths: list[int]) -> list[Asked]:
    return [
        Asked(engine, f"Question {number}", Sampling(max_tokens=most), streams=False)
        for number, most in enumerate(lengths)
    ]


@pytest.mark.parametrize(("steps", "expected"), [(0.0, [4, 1, 1, 1]), (0.25, [4, 2, 1]), (1.0, [4, 3])])
def test_prompts_wait_some_steps_for_others_while_nobody_watches(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, groups: list[int], steps: float, expected: list[int]
) -> None:
    monkeypatch.setitem(reading.HELD_STEPS_A_SLOT, "cpu", steps)
    asked = unwatched(engine, [4, 5, 6, 40, 30, 30, 30])
    run(Scheduler(engine.model, memory_of(engine, 4)), *asked)
    assert groups == expected
    assert all(request.answers_as_alone(engine) for request in asked)


def test_a_prompt_that_no_other_follows_is_read_after_these_steps(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, groups: list[int]
) -> None:
    monkeypatch.setitem(reading.HELD_STEPS_A_SLOT, "cpu", 1.0)
    *others, last = asked = unwatched(engine, [40, 40, 40, 3, 5])
    scheduler = Scheduler(engine.model, memory_of(engine, 4))
    for request in asked:
        scheduler.add(request)
    advance_until(scheduler, [last])
    assert groups == [4, 1]
    assert sum(len(other.tokens) < 40 for other in others[:3]) == 3
    advance_until(scheduler, idle=True)
    assert all(request.answers_as_alone(engine) for request in asked)


@pytest.mark.parametrize(("lacking", "expected"), [(100, [1, 1, 1, 1, 1, 1, 1]), (1, [1, 4, 2])])
def test_prompts_wait_while_somebody_watches_only_if_many_images_are_to_be_encoded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, groups: list[int], lacking: int, expected: list[int]
) -> None:
    monkeypatch.setitem(reading.LACKING_FOR_HELD_PROMPT, "cpu", lacking)
    watched = Asked(engine, "Hello", Sampling(max_tokens=200))
    scheduler = Scheduler(engine.model, memory_of(engine, 8))
    scheduler.add(watched)
    advance_until(scheduler, [watched])
    talks = [Conversation.ask("What?", (picture("red", (40 + number, 40)),)) for number in range(6)]
    asked = [Asked(engine, talk, Sampling(max_tokens=3)) for talk in talks]
    run(scheduler, *asked)
    assert groups == expected
    assert all(request.answers_as_alone(engine) for request in (watched, *asked))


def test_a_question_without_a_new_image_waits_for_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, groups: list[int]
) -> None:
    monkeypatch.setitem(reading.LACKING_FOR_HELD_PROMPT, "cpu", 1)
    watched, text = (Asked(engine, words, Sampling(max_tokens=200)) for words in ("Hello", "Hi"))
    scheduler = Scheduler(engine.model, memory_of(engine, 8))
    scheduler.add(watched)
    advance_until(scheduler, [watched])
    talks = [Conversation.ask("What?", (picture("red", (40 + number, 40)),)) for number in range(3)]
    for request in (text, *(Asked(engine, talk, Sampling(max_tokens=3)) for talk in talks)):
        scheduler.add(request)
    scheduler.advance()
    assert groups == [1, 1]
    assert scheduler.active == [watched, text]
    advance_until(scheduler, idle=True)
