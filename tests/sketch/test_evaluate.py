"""Test what the evaluation asks, how it counts, and how it compares two runs."""

import json
from pathlib import Path

import pytest

from mllama_cli.engine.engine import Engine, load
from mllama_cli.processing.images import open_image
from mllama_cli.sketch import evaluate
from mllama_cli.sketch.evaluate import Trial, conversation_of, held_out, in_pairs, table
from mllama_cli.sketch.questions.answers import LIMITS
from mllama_cli.sketch.questions.samples import EVALUATION_SEEDS, TASKS
from tests.checkpoints import make_checkpoint

FOREIGN = Path(__file__).parent / "foreign"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(make_checkpoint(tmp_path_factory.mktemp("model")), device="cpu")


class KnownAnswers:
    """Stand in for a model: answer from a table."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def __call__(self, engine: Engine, conversations: object, batch: int, grammars: object = None) -> list[str]:
        return [self.answers.get(talk.messages[-1].text, "?") for talk in conversations]  # type: ignore[attr-defined]


def test_samples_are_the_same_every_time_and_never_trained_on() -> None:
    for task in TASKS:
        first, again = ([s.question for s in held_out(task, 3)] for _ in range(2))
        assert first == again
    assert EVALUATION_SEEDS > 1 << 32


def test_the_engine_gets_the_very_pixels_and_all_turns_but_the_last_answer() -> None:
    for sample in [*held_out("change", 6), *held_out("follow-up", 3)]:
        talk = conversation_of(sample)
        assert [m.role for m in talk] == [turn.role for turn in sample.messages]
        assert talk.messages[-1].text == sample.question
        shown = [sample.images[index] for turn in sample.messages for index in turn.images]
        given = [open_image(part).tobytes() for part in talk.images]
        assert given == [image.convert("RGB").tobytes() for image in shown]


def test_right_answers_count_and_wrong_ones_do_not(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = list(held_out("count", 12))
    monkeypatch.setattr(evaluate, "answers_to", KnownAnswers({s.question: s.answer for s in samples[:8]}))
    trials = evaluate.try_task(engine, "count", 12, 4)
    by_question = {s.question for s in samples[:8]}
    assert [t.right for t in trials] == [s.question in by_question for s in samples]
    ((task, count, right, score),) = table(trials)
    assert (task, count) == ("count", 12)
    assert right == score == sum(t.right for t in trials) / 12


def test_a_caption_counts_fact_by_fact(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = next(s for s in held_out("describe", 60) if s.facts["kind"] == "caption" and s.answer.count(",") == 1)
    half = sample.answer.split(",")[0] + "."
    monkeypatch.setattr(evaluate, "held_out", lambda *_: [sample])
    monkeypatch.setattr(evaluate, "answers_to", KnownAnswers({sample.question: half}))
    (trial,) = evaluate.try_task(engine, "describe", 1, 1)
    assert not trial.right
    assert 0 < trial.score < 1


def test_other_peoples_drawings_and_limits(engine: Engine, monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    monkeypatch.setattr(evaluate, "answers_to", KnownAnswers({"How many circles are there?": "There are 3 circles."}))
    trials = evaluate.try_foreign(engine, FOREIGN, 8)
    right = [t for t in trials if t.right]
    assert right
    assert all("How many circles" in t.question and "3" in t.wanted for t in right)
    monkeypatch.setattr(evaluate, "answers_to", KnownAnswers({"Describe this image.": LIMITS}))
    trials = evaluate.try_limits(engine, sorted((shared / "photos").iterdir()), 8)
    assert [t.right for t in trials] == [True, False, False] * 2


def test_runs_are_compared_in_pairs() -> None:
    def run(*right: bool) -> list[Trial]:
        return [Trial("count", ok, float(ok), f"question {i}", "3", "") for i, ok in enumerate(right)]

    assert in_pairs(run(True, True, False, False), run(True, False, True, True)) == {"count": (1, 2)}
    with pytest.raises(ValueError, match="same questions"):
        in_pairs(run(True), [Trial("count", True, 1.0, "another", "3", "")])


def test_the_command_prints_a_table_and_writes_what_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model")
    out = tmp_path / "out.json"
    given = [str(model), "--samples", "2", "--tasks", "count", "about", "--device", "cpu", "--json", str(out)]
    evaluate.main(given)
    assert "| count | 2 | 0.0% | 0.0% |" in capsys.readouterr().out
    said = json.loads(out.read_text())
    assert [entry["task"] for entry in said] == ["count", "count", "about", "about"]
    assert all(entry["said"] != entry["wanted"] for entry in said)
    evaluate.main([*given[:-2], "--against", str(out), "--wrong", "1"])
    printed = capsys.readouterr().out
    assert "count: 0 became wrong, 0 became right" in printed
    assert "wanted:" in printed
