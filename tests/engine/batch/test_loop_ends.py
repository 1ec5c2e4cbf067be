"""How a loop ends: closed by its owner, or by a fault, from which it recovers if it can."""

import threading
import time

import pytest

from mllama_cli.core.errors import EngineError, MllamaError, ShuttingDownError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import EngineLoop
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.sampling import PendingTokens
from tests.engine.batch.asking import CONVERSATIONS, tokens_alone
from tests.engine.batch.loops import PATIENCE, Caller, running, settled

pytestmark = pytest.mark.usefixtures("tokens_read")


def busy_loop(engine: Engine, most: int) -> tuple[EngineLoop, list[Caller], list[Caller]]:
    """Return a loop with two requests in its slots, at their first tokens, and three in its queue."""
    loop = EngineLoop(engine.model, slots=2)
    first, second = (
        Caller(engine, loop, f"Go on {n}", Sampling(max_tokens=most, temperature=1.5, seed=n)) for n in range(2)
    )
    first.submit()
    second.submit()
    for caller in (first, second):
        assert caller.begun.wait(30)
    queued = [Caller(engine, loop, CONVERSATIONS[n], Sampling(max_tokens=5)).submit() for n in range(3)]
    return loop, [first, second], queued


def test_with_grace_running_answers_end_and_the_queue_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.model, "eos", frozenset())
    loop, running_, queued = busy_loop(engine, 60)
    loop.close(grace=60)
    for caller in running_:
        assert caller.answer() == tokens_alone(engine, caller.inputs, caller.sampling)
    for caller in queued:
        assert isinstance(caller.error(), ShuttingDownError)
        assert caller.error().hint
        assert caller.tokens == []


@pytest.mark.parametrize("grace", [0.0, 0.05])
def test_after_the_grace_running_answers_are_refused_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    monkeypatch.setattr(engine.model, "eos", frozenset())
    loop, running_, queued = busy_loop(engine, 1900)
    loop.close(grace)
    for caller in (*running_, *queued):
        assert isinstance(caller.error(), ShuttingDownError)
    for caller in running_:
        expected = tokens_alone(
            engine, caller.inputs, Sampling(max_tokens=8, temperature=1.5, seed=running_.index(caller))
        )
        assert caller.tokens[:1] == expected[:1]


def test_a_closed_loop_takes_no_request_and_can_be_closed_again(engine: Engine) -> None:
    before = threading.enumerate()
    loop = EngineLoop(engine.model, slots=2)
    loop.close()
    with pytest.raises(ShuttingDownError):
        Caller(engine, loop, "Hello", Sampling(max_tokens=2)).submit()
    loop.close()
    assert "engine" not in [thread.name for thread in threading.enumerate() if thread not in before]


def test_who_cancelled_hears_nothing_of_the_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.model, "eos", frozenset())
    hold, held = threading.Event(), threading.Event()
    loop = EngineLoop(engine.model, slots=1)
    first = Caller(engine, loop, "Hello", Sampling(max_tokens=300))
    first.on_token = lambda: (held.set(), hold.wait()) if len(first.tokens) == 1 else None
    first.submit()
    assert held.wait(30)
    queued = Caller(engine, loop, "Next", Sampling(max_tokens=3)).submit()
    closing = threading.Thread(target=loop.close)
    closing.start()
    first.cancel()
    queued.cancel()
    hold.set()
    closing.join()
    assert len(first.events) - first.events.index(first.tokens[0]) == 1
    assert queued.events == []


def test_a_fault_fails_all_requests_with_one_clear_error_and_the_next_is_answered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, broken, all_asked = Slots.step, threading.Event(), threading.Event()

    def sometimes(self: Slots) -> PendingTokens:
        if broken.is_set():
            broken.clear()
            raise KeyError("a bug")
        return step(self)

    monkeypatch.setattr(Slots, "step", sometimes)
    with running(engine, slots=2) as loop:
        before = Caller(engine, loop, CONVERSATIONS[1], Sampling(max_tokens=4)).submit()
        before.answer()
        counted = settled(loop)
        callers = [Caller(engine, loop, CONVERSATIONS[n % 7], Sampling(max_tokens=40)) for n in range(5)]
        callers[0].on_token = lambda: all_asked.wait(PATIENCE) and broken.set()
        for caller in callers:
            caller.submit()
        all_asked.set()
        for caller in callers:
            error = caller.error()
            assert type(error) is MllamaError
            assert "a bug" in error.message
            assert "\n" not in error.message
            assert error.hint
        stats = settled(loop)
        for name in ("images_encoded", "image_cache_hits", "cached_tokens"):
            assert getattr(stats, name) >= getattr(counted, name), "counters only grow"
        assert all(caller.handle is not None and caller.handle.caches is None for caller in callers)
        for _ in range(2):
            later = Caller(engine, loop, CONVERSATIONS[2], Sampling(max_tokens=6)).submit()
            assert later.answer() == tokens_alone(engine, later.inputs, later.sampling)
        assert settled(loop).images_encoded >= counted.images_encoded + 2


def test_a_device_that_does_nothing_more_fails_every_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an assertion on a GPU, when making new caches fails, too."""
    broken, all_asked = threading.Event(), threading.Event()

    def failing(*_: object, **__: object) -> None:
        if broken.is_set():
            raise RuntimeError("CUDA error: device-side assert triggered")

    step = Slots.step
    monkeypatch.setattr(Slots, "step", lambda self: failing() or step(self))
    monkeypatch.setattr(EngineLoop, "_count", failing)
    loop = EngineLoop(engine.model, slots=2)
    callers = [Caller(engine, loop, CONVERSATIONS[n], Sampling(max_tokens=40)) for n in range(4)]
    callers[0].on_token = lambda: all_asked.wait(PATIENCE) and broken.set()
    for caller in callers:
        caller.submit()
    all_asked.set()
    for caller in callers:
        assert "device-side assert" in caller.error().message
    deadline = time.monotonic() + 30
    while loop.fault is None and time.monotonic() < deadline:  # it ends after its last report
        time.sleep(0.005)
    with pytest.raises(EngineError, match="device-side assert"):
        Caller(engine, loop, CONVERSATIONS[0], Sampling(max_tokens=4)).submit()
    with pytest.raises(EngineError):
        loop.run(int)
    loop.close()
