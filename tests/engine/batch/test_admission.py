"""Who is admitted next, and how many bytes those in slots may take together."""

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import ContextLengthError, MemoryShortageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import EngineLoop
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.engine import Engine
from tests.engine.batch.asking import CONVERSATIONS, RED, WIDE, Asked, advance_until, limit_memory, memory_of, run
from tests.engine.conftest import picture

ASK = Sampling(max_tokens=5)


def test_requests_start_in_the_order_of_their_arrival(engine: Engine) -> None:
    started: list[Asked] = []

    class Noted(Asked):
        def report(self, event: object) -> None:
            if not self.tokens:
                started.append(self)
            super().report(event)  # type: ignore[arg-type]

    asked = [Noted(engine, f"Question {number}", Sampling(max_tokens=2 + number % 5)) for number in range(12)]
    run(Scheduler(engine.model, memory_of(engine, 3)), *asked)
    assert list(dict.fromkeys(started)) == asked


def test_small_requests_do_not_overtake_a_large_one_for_ever(engine: Engine) -> None:
    """It needs all the memory, so it starts as soon as those before it have ended, and before those after it."""
    large_tokens = 1500
    memory = memory_of(engine, 4, memory_of(engine, 4).text_bytes(large_tokens + 100))
    ended: list[Asked] = []
    large = Asked(engine, "x" * (large_tokens - 200), Sampling(max_tokens=200), ended=ended)
    scheduler = Scheduler(engine.model, memory)

    def small(number: int) -> Asked:
        return Asked(engine, f"{number}?", Sampling(max_tokens=10), ended=ended)

    before = [small(number) for number in range(6)]
    for request in (*before, large):
        scheduler.add(request)
    stream = []
    while not large.over:  # an endless stream of small ones
        if len(scheduler.admission.waiting) < 4:
            stream.append(small(len(stream)))
            scheduler.add(stream[-1])
        scheduler.advance()
        assert len(stream) < 100, "the large request starves"
    assert set(ended) == {*before, large}
    advance_until(scheduler, idle=True)
    assert all(request.answers_as_alone(engine) for request in (*before, large, *stream))


@pytest.mark.parametrize("fitting", [1, 2, 3])
def test_what_does_not_fit_beside_others_waits(engine: Engine, fitting: int) -> None:
    each = memory_of(engine, 8).text_bytes(370)
    memory = memory_of(engine, 8, fitting * each + each // 2)
    asked = [Asked(engine, f"Number {number}. " + "x" * 280, Sampling(max_tokens=60)) for number in range(5)]
    scheduler = Scheduler(engine.model, memory)
    for request in asked:
        scheduler.add(request)
    most = 0
    while not scheduler.idle:
        scheduler.advance()
        most = max(most, len(scheduler.active))
        assert scheduler.admission.cache_bytes <= memory.limit
    assert most == fitting
    assert all(request.answers_as_alone(engine) for request in asked)


def test_images_count_too(engine: Engine) -> None:
    one = memory_of(engine, 8)
    memory = memory_of(engine, 8, one.text_bytes(100) + 2 * one.image_bytes)
    talks = [Conversation.ask("?", (picture(size=(100 + number, 120)),)) for number in range(6)]
    asked = [Asked(engine, talk, Sampling(max_tokens=20)) for talk in talks]
    scheduler = Scheduler(engine.model, memory)
    for request in asked:
        scheduler.add(request)
    while not scheduler.idle:
        scheduler.advance()
        assert scheduler.admission.cache_bytes <= memory.limit
    assert all(request.answers_as_alone(engine) for request in asked)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_little_memory_changes_no_answer(engine: Engine, share: float) -> None:
    largest = 2 * memory_of(engine, 8).text_bytes(300) + 6 * memory_of(engine, 8).image_bytes
    scheduler = Scheduler(engine.model, memory_of(engine, 8, int(share * largest)))
    asked = [Asked(engine, CONVERSATIONS[number % 7], Sampling(max_tokens=5 + number)) for number in range(14)]
    run(scheduler, *asked)
    for request in asked:
        assert isinstance(request.error, MemoryShortageError) or request.answers_as_alone(engine)
    answered = [request for request in asked if request.error is None]
    assert len(answered) >= (14 if share > 0.5 else 4)


def test_what_is_kept_gives_way_to_what_is_asked(engine: Engine) -> None:
    each = memory_of(engine, 4).text_bytes(400)
    scheduler = Scheduler(engine.model, memory_of(engine, 4, 2 * each))
    first = [Asked(engine, f"{number} " + "y" * 300, Sampling(max_tokens=3)) for number in range(3)]
    run(scheduler, *first)
    assert 0 < scheduler.admission.prefixes.nbytes <= 2 * each
    later = [Asked(engine, f"Other {number} " + "z" * 300, Sampling(max_tokens=50)) for number in range(2)]
    for request in later:
        scheduler.add(request)
    scheduler.advance()
    assert len(scheduler.active) == 2
    advance_until(scheduler, idle=True)
    assert all(request.answers_as_alone(engine) for request in later)


def test_a_cache_taken_over_from_an_earlier_turn_counts_with_all_its_room(engine: Engine) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    generous, modest = Asked(engine, "Hello there", Sampling(max_tokens=1500)), Asked(engine, "Hello there", ASK)
    scheduler.add(generous)
    advance_until(scheduler, [generous])
    scheduler.cancel(generous)
    kept = scheduler.admission.cache_bytes
    scheduler.add(modest)
    scheduler.advance()
    assert modest.cached > 0
    assert scheduler.admission.cache_bytes >= kept
    advance_until(scheduler, idle=True)
    assert modest.answers_as_alone(engine)


def test_what_can_never_fit_is_refused_when_it_is_asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    one = memory_of(engine, 2)
    limit_memory(monkeypatch, engine, one.text_bytes(600) + one.image_bytes)
    loop = EngineLoop(engine.model, slots=2, max_context=1000)
    heard: list[object] = []
    try:
        for talk, most, error in (
            (Conversation.ask("x" * 990), 1, ContextLengthError),
            (Conversation.ask("x" * 500), 400, MemoryShortageError),
            (Conversation.ask("?", (RED, WIDE)), 700, MemoryShortageError),
        ):
            with pytest.raises(error) as caught:
                loop.submit(engine.processor(talk), Sampling(max_tokens=most), heard.append)
            assert caught.value.hint
        assert loop.stats().waiting == 0
    finally:
        loop.close()
    assert heard == []


def test_the_context_ends_an_answer(engine: Engine) -> None:
    asked = Asked(engine, "x" * 50, Sampling(max_tokens=500))
    limit = len(asked.ids) + 9
    late = Asked(engine, "x" * 90, Sampling(max_tokens=5))
    run(Scheduler(engine.model, memory_of(engine, 2), max_context=limit), asked, late)
    assert (asked.stats.finish_reason, asked.stats.completion_tokens) == ("length", 9)
    assert isinstance(late.error, ContextLengthError)
