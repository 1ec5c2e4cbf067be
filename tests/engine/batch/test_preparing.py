"""What a loop prepares while it has no request."""

import time
from collections.abc import Callable

import pytest

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import loop as loops
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.engine import Engine
from tests.engine.batch.asking import CONVERSATIONS, tokens_alone
from tests.engine.batch.loops import Caller, running

pytestmark = pytest.mark.usefixtures("tokens_read")


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_cannot_be_prepared_is_tried_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def prepare(self: Scheduler) -> bool:
        tried.append(self)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Scheduler, "prepare", prepare)
    with running(engine, slots=2) as loop:
        wait_until(lambda: bool(tried))
        caller = Caller(engine, loop, CONVERSATIONS[2], Sampling(max_tokens=6)).submit()
        assert caller.answer() == tokens_alone(engine, caller.inputs, caller.sampling)
    assert 1 <= len(tried) <= 3


def test_who_asks_again_at_once_need_not_wait_for_what_is_prepared(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []

    def prepare(self: Scheduler) -> bool:
        prepared.append(self)
        time.sleep(0.001)
        return True

    monkeypatch.setattr(Scheduler, "prepare", prepare)
    monkeypatch.setattr(loops, "PREPARE_AFTER_SECONDS", 1000)
    with running(engine, slots=2) as loop:
        wait_until(lambda: bool(prepared))

        def ask() -> int:
            Caller(engine, loop, CONVERSATIONS[5], Sampling(max_tokens=2)).submit().answer()
            loop.run(int).result(30)
            return len(prepared)

        first = ask()
        assert ask() == first
        assert ask() == first
        monkeypatch.setattr(loops, "PREPARE_AFTER_SECONDS", 0)
        ask()
        wait_until(lambda: len(prepared) > first)
