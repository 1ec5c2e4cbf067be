"""A long prompt is read in slices, between which the answers that somebody watches go on."""

from collections.abc import Generator

import pytest
from torch import Tensor

from mllama_cli.core.events import ReadingPrompt
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.reading import SLICE_TOKENS
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.engine import Engine
from mllama_cli.model.text import MllamaTextModel
from tests.engine.batch.asking import Asked, advance_until, memory_of

pytestmark = pytest.mark.usefixtures("tokens_read")

LONG = "x" * 1700


class Watcher(Asked):
    """Notes how many prompt tokens had been fed when each of its tokens came."""

    fed: list[int]

    def report(self, event: object) -> None:
        super().report(event)  # type: ignore[arg-type]
        if len(self.marks) < len(self.tokens):
            self.marks.append(sum(self.fed))

    marks: list[int]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with the number of ids, padding included, that each layer reads of prompts."""
    read: list[int] = []
    run = MllamaTextModel.run_steps

    def counted(self: MllamaTextModel, ids: Tensor, *rest: object) -> Generator[None, None, Tensor]:
        steps = run(self, ids, *rest)  # type: ignore[arg-type]
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: Tensor = end.value
                return result
            if ids.shape[1] > 1:
                read.append(ids.numel())
            yield

    monkeypatch.setattr(MllamaTextModel, "run_steps", counted)
    return read


def watcher(engine: Engine, fed: list[int], tokens: int) -> Watcher:
    request = Watcher(engine, "Hello", Sampling(max_tokens=tokens))
    request.fed, request.marks = fed, []
    return request


def test_between_two_tokens_at_most_one_slice_is_read(
    engine: Engine, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.model, "eos", frozenset())
    scheduler = Scheduler(engine.model, memory_of(engine, 12))
    first = watcher(engine, fed, 40)
    scheduler.add(first)
    advance_until(scheduler, [first])
    long = [Asked(engine, f"{number} {LONG}", Sampling(max_tokens=5)) for number in range(2)]
    short = [Asked(engine, f"{number}?" * 20, Sampling(max_tokens=5)) for number in range(8)]
    for request in (long[0], *short, long[1]):
        scheduler.add(request)
    advance_until(scheduler, idle=True)
    between = [after - before for before, after in zip(first.marks, first.marks[1:], strict=False)]
    layers = engine.config.text_config.num_hidden_layers
    assert max(between) <= max(SLICE_TOKENS["cpu"] * layers, engine.model.prefill_chunk)
    assert sum(between) > 3000 * layers, "the prompts were read while it was answering"
    assert all(request.answers_as_alone(engine) for request in (first, *long, *short))


def test_short_prompts_need_not_wait_for_a_long_one(engine: Engine, fed: list[int]) -> None:
    ended: list[Asked] = []
    scheduler = Scheduler(engine.model, memory_of(engine, 4))
    first = watcher(engine, fed, 200)
    scheduler.add(first)
    advance_until(scheduler, [first])
    long = Asked(engine, LONG, Sampling(max_tokens=2), ended=ended)
    scheduler.add(long)
    scheduler.advance()
    short = Asked(engine, "Hi", Sampling(max_tokens=1), ended=ended)
    scheduler.add(short)
    advance_until(scheduler, idle=True)
    assert ended == [short, long]
    assert long.answers_as_alone(engine)
    assert short.answers_as_alone(engine)


@pytest.mark.parametrize("others", [0, 1, 2])
def test_the_progress_of_a_long_prompt_only_grows_whatever_is_read_between(
    engine: Engine, fed: list[int], others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.model, "eos", frozenset())
    scheduler = Scheduler(engine.model, memory_of(engine, 8))
    first = watcher(engine, fed, 30)
    scheduler.add(first)
    advance_until(scheduler, [first])
    long = Asked(engine, LONG, Sampling(max_tokens=3))
    scheduler.add(long)
    scheduler.advance()
    for number in range(others):
        scheduler.add(Asked(engine, f"{number}, in between", Sampling(max_tokens=2)))
    advance_until(scheduler, idle=True)
    reading = [event for event in long.events if isinstance(event, ReadingPrompt)]
    total = len(long.ids)
    chunk, layers = engine.model.prefill_chunk, engine.config.text_config.num_hidden_layers
    assert reading == [ReadingPrompt(done, total) for done in (*range(0, total, chunk), total)]
    assert fed.count(chunk) == total // chunk * layers, "no chunk was read twice"


def test_nobody_watching_a_long_prompt_is_read_in_larger_chunks(engine: Engine, fed: list[int]) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 4))
    long = Asked(engine, LONG, Sampling(max_tokens=3), streams=False)
    scheduler.add(long)
    advance_until(scheduler, idle=True)
    chunk, layers = engine.model.prefill_chunk, engine.config.text_config.num_hidden_layers
    assert fed == [chunk] * layers + [len(long.ids) - chunk] * layers
