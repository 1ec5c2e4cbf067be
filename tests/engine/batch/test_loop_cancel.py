"""A request can be cancelled at any moment, and leaves nothing behind."""

import random
import threading

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import EncodingImage, ReadingPrompt, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import reading
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.engine import Engine
from tests.engine.batch.asking import CONVERSATIONS, Asked, advance_until, memory_of, tokens_alone
from tests.engine.batch.loops import Caller, running, settled
from tests.engine.conftest import picture

pytestmark = pytest.mark.usefixtures("tokens_read")

MOMENTS = 100


@pytest.fixture
def _short_slices(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that most prompts are read in several."""
    monkeypatch.setitem(reading.SLICE_TOKENS, "cpu", 6)
    monkeypatch.setattr(engine.model, "prefill_chunk", 24)


def doing(request: Asked, scheduler: Scheduler) -> str:
    if request.over:
        return "over"
    if request in scheduler.active:
        return "decoding"
    if request in scheduler.admission.waiting:
        return "queued"
    last = request.events[-1] if request.events else None
    return {EncodingImage: "encoding", ReadingPrompt: "reading"}.get(type(last), "admitted")  # type: ignore[arg-type]


@pytest.mark.usefixtures("_short_slices")
def test_cancelled_at_any_moment_it_leaves_nothing_and_changes_no_other_answer(engine: Engine) -> None:
    """A hundred times for each way to read tokens: the others' answers are those of a session."""
    chosen = random.Random(5)
    image = picture("blue", (50, 50))
    scheduler = Scheduler(engine.model, memory_of(engine, 3))
    cancelled_while: set[str] = set()
    for moment in range(MOMENTS):
        victim = Asked(engine, Conversation.ask("y" * 60 + str(moment), (image,)), Sampling(max_tokens=15))
        others = [
            Asked(engine, CONVERSATIONS[chosen.randrange(7)], Sampling(max_tokens=chosen.randint(1, 6)))
            for _ in range(chosen.randrange(3))
        ]
        everybody = [*others, victim]
        chosen.shuffle(everybody)
        for request in everybody:
            scheduler.add(request)
        for _ in range(chosen.randrange(25)):
            scheduler.advance()
        cancelled_while.add(doing(victim, scheduler))
        heard = len(victim.events)
        scheduler.cancel(victim)
        assert victim not in scheduler.requests
        advance_until(scheduler, idle=True)
        assert len(victim.events) == heard
        if moment % 10 == 0:  # nearly all of the time would go to sessions otherwise
            assert all(request.answers_as_alone(engine) for request in others)
        assert all(request.stats for request in others)
        scheduler.admission.images.evict()
    assert cancelled_while >= {"queued", "encoding", "reading", "decoding"}
    scheduler.admission.forget_caches()
    assert scheduler.admission.cache_bytes == 0


@pytest.mark.usefixtures("_short_slices")
def test_from_other_threads_too(engine: Engine) -> None:
    chosen = random.Random(7)
    pause = threading.Event()
    with running(engine, slots=3) as loop:
        other = Caller(engine, loop, "Hello, what is new?", Sampling(max_tokens=200, temperature=1.0, seed=8)).submit()
        victims = []
        for number in range(60):
            talk = CONVERSATIONS[number % 7]
            victims.append(Caller(engine, loop, talk, Sampling(max_tokens=100, temperature=1.5, seed=number)).submit())
            pause.wait(chosen.random() * 0.01)
            victims[-1].cancel()
        heard = [len(victim.events) for victim in victims]
        assert other.answer() == tokens_alone(engine, other.inputs, other.sampling)
        assert settled(loop).running == 0
        # An event may have been under way, but none comes after the loop has taken note.
        assert all(len(v.events) <= before + 1 for v, before in zip(victims, heard, strict=True))
        late = Caller(engine, loop, "And now?", Sampling(max_tokens=5)).submit()
        assert late.answer() == tokens_alone(engine, late.inputs, late.sampling)


def test_a_listener_that_cancels_at_a_token_hears_no_more(engine: Engine) -> None:
    with running(engine, slots=2) as loop:
        caller = Caller(engine, loop, "Hello", Sampling(max_tokens=50))
        caller.on_token = lambda: caller.cancel() if len(caller.tokens) == 3 else None
        caller.submit()
        assert caller.begun.wait(30)
        stats = settled(loop)
        assert (stats.running, stats.waiting) == (0, 0)
    assert len(caller.tokens) == 3
    assert isinstance(caller.events[-1], Token)


def test_a_listener_that_fails_loses_its_own_answer_alone(engine: Engine) -> None:
    with running(engine) as loop:
        failing = Caller(engine, loop, CONVERSATIONS[0], Sampling(max_tokens=30))
        other = Caller(engine, loop, CONVERSATIONS[1], Sampling(max_tokens=30))
        failing.on_token = lambda: 1 / 0
        failing.submit()
        other.submit()
        assert other.answer() == tokens_alone(engine, other.inputs, other.sampling)
        settled(loop)
    assert len(failing.tokens) == 1
    assert not failing.over.is_set()


def test_cancelling_what_has_ended_is_harmless(engine: Engine) -> None:
    with running(engine, slots=2) as loop:
        first = Caller(engine, loop, "Hello", Sampling(max_tokens=3)).submit()
        tokens = first.answer()
        for _ in range(2):
            first.cancel()
        again = Caller(engine, loop, "Hello", Sampling(max_tokens=3)).submit()
        assert again.answer() == tokens
