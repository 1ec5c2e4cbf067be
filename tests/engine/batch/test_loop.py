"""A loop on its own thread gives every caller the answer, and the events, that a session gives."""

import threading

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import QueueFullError
from mllama_cli.core.events import EncodingImage, GenerationStats, Notice, Prefilled, ReadingPrompt, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from tests.engine.batch.asking import CONVERSATIONS, LENGTHS, tokens_alone
from tests.engine.batch.loops import Caller, running, settled

pytestmark = pytest.mark.usefixtures("tokens_read")

SAMPLINGS = [Sampling(max_tokens=15), Sampling(max_tokens=15, temperature=1.0, seed=6, repetition_penalty=1.1)]
ORDER = (Notice, EncodingImage, ReadingPrompt, Prefilled, Token, GenerationStats)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_the_events_of_one_answer_are_those_of_a_session(engine: Engine, conversation: Conversation) -> None:
    sampling = Sampling(max_tokens=12)
    with running(engine) as loop:
        caller = Caller(engine, loop, conversation, sampling).submit()
        assert caller.answer() == tokens_alone(engine, caller.inputs, sampling)
    assert [ORDER.index(type(event)) for event in caller.events] == sorted(
        ORDER.index(type(event))
        for event in caller.events  # type: ignore[arg-type]
    )
    theirs = list(engine.session().stream(conversation, sampling))
    kinds = [type(event) for event in theirs]
    assert [type(event) for event in caller.events] == kinds
    assert [e for e in caller.events if not isinstance(e, GenerationStats)] == theirs[:-1]
    ours, stats = caller.events[-1], theirs[-1]
    assert isinstance(ours, GenerationStats)
    assert isinstance(stats, GenerationStats)
    for name in ("finish_reason", "prompt_tokens", "cached_tokens", "images", "completion_tokens"):
        assert getattr(ours, name) == getattr(stats, name)


def test_an_answer_that_goes_on_from_a_given_beginning(engine: Engine) -> None:
    talk = Conversation.ask("Count").with_assistant("One, two,")
    with running(engine) as loop:
        caller = Caller(engine, loop, talk, Sampling(max_tokens=5)).submit().wait()
    beginning = next(event for event in caller.events if isinstance(event, Prefilled))
    assert beginning.text == "One, two,"
    assert isinstance(caller.events[caller.events.index(beginning) + 1], Token)
    assert caller.tokens == tokens_alone(engine, caller.inputs, caller.sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_an_answer_beside_31_others_is_the_one_it_gets_alone(engine: Engine, sampling: Sampling) -> None:
    with running(engine, slots=32) as loop:
        callers = [
            Caller(engine, loop, CONVERSATIONS[n % 7], sampling if n == 9 else Sampling(max_tokens=LENGTHS[n % 14]))
            for n in range(32)
        ]
        for caller in callers:
            caller.submit()
        assert callers[9].answer() == tokens_alone(engine, callers[9].inputs, sampling)
        for caller in callers:
            assert caller.answer() == tokens_alone(engine, caller.inputs, caller.sampling)


def test_several_answers_to_one_prompt_differ_by_their_seeds(engine: Engine) -> None:
    with running(engine, slots=3) as loop:
        callers = [
            Caller(engine, loop, CONVERSATIONS[2], Sampling(max_tokens=12, temperature=1.0, seed=seed)).submit()
            for seed in (1, 2, 3, 1, 2, 3, 4)
        ]
        answers = [caller.answer() for caller in callers]
        stats = settled(loop)
    assert answers == [tokens_alone(engine, caller.inputs, caller.sampling) for caller in callers]
    assert len({tuple(token.id for token in answer) for answer in answers}) == 4
    assert stats.images_encoded == 2
    assert stats.cached_tokens > 0


def test_eight_threads_at_once(engine: Engine) -> None:
    together = threading.Barrier(8)
    callers: list[Caller] = []
    with running(engine, slots=5) as loop:

        def ask(thread: int) -> None:
            mine = [
                Caller(engine, loop, CONVERSATIONS[(thread + n) % 7], Sampling(max_tokens=9, temperature=1.0, seed=n))
                for n in range(5)
            ]
            callers.extend(mine)
            together.wait()
            for caller in mine:
                caller.submit()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for caller in callers:
            assert caller.answer() == tokens_alone(engine, caller.inputs, caller.sampling)
        assert settled(loop).slots == 5
    assert len(callers) == 40


def test_a_full_queue_refuses_and_takes_requests_again_when_there_is_room(engine: Engine) -> None:
    hold, held = threading.Event(), threading.Event()
    with running(engine, slots=1, max_queue=3) as loop:
        first = Caller(engine, loop, "Hello", Sampling(max_tokens=3))
        first.on_token = lambda: (held.set(), hold.wait())
        first.submit()
        assert held.wait(30)  # the loop's thread stands still
        queued = [Caller(engine, loop, f"{number}?", Sampling(max_tokens=3)).submit() for number in range(3)]
        with pytest.raises(QueueFullError) as caught:
            Caller(engine, loop, "One too many", Sampling(max_tokens=3)).submit()
        assert "3" in caught.value.message
        assert caught.value.hint
        hold.set()
        for caller in (first, *queued):
            assert caller.answer() == tokens_alone(engine, caller.inputs, caller.sampling)
        settled(loop)
        assert Caller(engine, loop, "Now?", Sampling(max_tokens=3)).submit().answer()


def test_requests_that_the_loop_has_taken_in_still_count_as_waiting(engine: Engine) -> None:
    holds = [threading.Event(), threading.Event()]
    held = [threading.Event(), threading.Event()]
    with running(engine, slots=1, max_queue=2) as loop:
        first = Caller(engine, loop, "Hello", Sampling(max_tokens=8))

        def hold() -> None:
            if len(first.tokens) in (1, 3):  # not 2, which may come of the same piece of work as the first
                held[len(first.tokens) // 2].set()
                holds[len(first.tokens) // 2].wait()

        first.on_token = hold
        first.submit()
        assert held[0].wait(30)
        queued = [Caller(engine, loop, f"{number}?", Sampling(max_tokens=3)).submit() for number in range(2)]
        holds[0].set()
        assert held[1].wait(30)  # between them the loop has taken both in
        with pytest.raises(QueueFullError):
            Caller(engine, loop, "One too many", Sampling(max_tokens=3)).submit()
        holds[1].set()
        for caller in (first, *queued):
            caller.answer()


def test_stats_count_what_runs_and_what_caches_gave(engine: Engine) -> None:
    with running(engine, slots=2) as loop:
        before = loop.stats()
        assert (before.slots, before.running, before.waiting, before.cache_bytes) == (2, 0, 0, 0)
        for _ in range(2):
            Caller(engine, loop, CONVERSATIONS[2], Sampling(max_tokens=3)).submit().answer()
        stats = settled(loop)
        assert (stats.images_encoded, stats.cached_tokens) == (2, len(engine.processor(CONVERSATIONS[2]).ids) - 1)
        assert stats.image_cache_hits == 2
        assert stats.cache_bytes > 0
