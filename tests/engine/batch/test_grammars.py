"""Answers held to grammars: alone, and in a batch beside others that are not."""

import json
from collections.abc import Iterator

import jsonschema
import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import UsageError
from mllama_cli.core.events import GenerationStats, Token
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import scheduler
from mllama_cli.engine.batch.request import BatchReply, BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine
from mllama_cli.processing.grammar import Constraint
from tests.engine.batch.asking import CONVERSATIONS, Asked, alone, memory_of, run
from tests.processing.schemas import SCHEMAS

COLOURS = Grammar.choices(["red", "green", "blue", "red and green"])
PLATE = Grammar.regex("[A-Z]{2}-[0-9]{3,5}")
FORMS = [None, COLOURS, Grammar.fields("ok bool, n int"), None, PLATE, Grammar.json_object(), None, COLOURS]


@pytest.fixture(params=[0, 1], ids=["", "ahead"])
def _ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tokens one step late, as on a GPU."""
    monkeypatch.setitem(scheduler.STEPS_AHEAD, "cpu", request.param)


def answers(engine: Engine, samplings: list[Sampling], slots: int = 4) -> list[BatchReply]:
    prompts = [engine.processor(CONVERSATIONS[key % len(CONVERSATIONS)]) for key in range(len(samplings))]
    requests = [
        BatchRequest(key, prompt, sampling=each)
        for key, (prompt, each) in enumerate(zip(prompts, samplings, strict=True))
    ]
    replies = sorted(run_batch(engine.model, requests, slots=slots), key=lambda reply: int(str(reply.key)))
    for request, reply in zip(requests, replies, strict=True):
        assert reply.error is None
        assert reply.ids == alone(engine, request), "as if it were answered alone"
    return replies


@pytest.mark.usefixtures("_ahead")
@pytest.mark.parametrize("temperatures", [(0.0,), (2.0,), (0.0, 2.0, 0.0)], ids=["greedy", "drawn", "mixed"])
def test_each_row_keeps_to_its_own_grammar_and_answers_as_alone(
    engine: Engine, temperatures: tuple[float, ...]
) -> None:
    heat = [temperatures[key % len(temperatures)] for key in range(len(FORMS))]
    samplings = [
        Sampling(grammar=form, temperature=heat[key], seed=key, max_tokens=40) for key, form in enumerate(FORMS)
    ]
    replies = answers(engine, samplings)
    for form, reply in zip(FORMS, replies, strict=True):
        if form is COLOURS:
            assert reply.text in COLOURS.texts
            assert reply.finish_reason == "stop"
        elif form is PLATE:
            assert reply.finish_reason == "length" or 6 <= len(reply.text) <= 8
    free = [reply.ids for form, reply in zip(FORMS, replies, strict=True) if form is None]
    plain = [Sampling(temperature=heat[key], seed=key, max_tokens=40) for key in range(len(FORMS))]
    assert free == [reply.ids for form, reply in zip(FORMS, answers(engine, plain), strict=True) if form is None]


@pytest.mark.usefixtures("_ahead")
def test_a_greedy_answer_that_fits_anyway_is_the_same_token_for_token(engine: Engine) -> None:
    free = answers(engine, [Sampling(max_tokens=12)] * 4)
    held = [Sampling(max_tokens=12, grammar=Grammar.regex("(?s).*")), *[Sampling(max_tokens=12)] * 3]
    if "\ufffd" not in free[0].text:  # patterns match characters, a random network says any bytes
        assert [reply.ids for reply in answers(engine, held)] == [reply.ids for reply in free]
    texts = Grammar.choices(["yes", "no"])
    assert [
        reply.ids for reply in answers(engine, [Sampling(max_tokens=12, grammar=texts), *[Sampling(max_tokens=12)] * 3])
    ][1:] == [reply.ids for reply in free][1:]


@pytest.mark.slow
def test_random_weights_answer_two_hundred_schemas_with_valid_json(engine: Engine) -> None:
    grammars = {name: Grammar.schema(schema) for name, schema in SCHEMAS.items()}
    prompt = engine.processor(Conversation.ask("Hi"))
    requests = [
        BatchRequest(name, prompt, sampling=Sampling(temperature=2, seed=1, grammar=grammar, max_tokens=600))
        for name, grammar in grammars.items()
    ]
    whole = 0
    for reply in run_batch(engine.model, requests, slots=16):
        assert reply.error is None
        if reply.finish_reason == "stop":
            whole += 1
            jsonschema.Draft202012Validator(SCHEMAS[reply.key]).validate(json.loads(reply.text))
    assert whole > 0.9 * len(requests), "only texts without a longest length may go on"


def test_a_whole_answer_of_exactly_the_longest_length_is_not_cut(engine: Engine) -> None:
    forms = [(Grammar.choices(["abc"]), 3), (Grammar.choices(["abcd"]), 3)]
    for slots in (1, 2):
        asked = [Sampling(grammar=form, max_tokens=most) for form, most in forms]
        assert [(each.text, each.finish_reason) for each in answers(engine, asked, slots)] == [
            ("abc", "stop"),
            ("abc", "length"),
        ]


def test_log_probabilities_are_the_models_own(engine: Engine) -> None:
    sampling = Sampling(grammar=Grammar.choices(["zq"]), logprobs=0)
    events = list(engine.stream(Conversation.ask("Hi"), sampling))
    tokens = [event for event in events if isinstance(event, Token)]
    assert "".join(token.text for token in tokens) == "zq"
    assert all(token.logprob is not None and token.logprob < -0.5 for token in tokens), "as if nothing were masked"


def test_an_answer_that_has_begun_goes_on_by_its_grammar(engine: Engine) -> None:
    question = Conversation.ask("Which?").with_prefill("red and")
    [reply] = engine.answer_batch([question], Sampling(grammar=COLOURS))
    assert reply.text == "red and green"
    with pytest.raises(UsageError, match="cannot begin with"):
        engine.answer_batch([question], Sampling(grammar=PLATE))
    with pytest.raises(UsageError, match="cannot begin with"):
        list(engine.stream(question, Sampling(grammar=PLATE)))


def test_a_grammar_that_cannot_be_enforced_fails_its_request_alone(engine: Engine) -> None:
    prompt = engine.processor(Conversation.ask("Hi"))
    bad, good = (Asked(engine, "Hi", Sampling(grammar=form, max_tokens=5)) for form in (Grammar.regex("("), COLOURS))
    del prompt
    batch = scheduler.Scheduler(engine.model, memory_of(engine, 2))
    run(batch, bad, good)
    assert isinstance(bad.error, UsageError)
    assert good.error is None
    assert isinstance(good.events[-1], GenerationStats)


def test_a_grammar_that_becomes_too_complex_fails_its_answer_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Constraint.push
    calls: Iterator[int] = iter(range(100))

    def failing(self: Constraint, token: int) -> None:
        if next(calls) == 3:
            self.state.consume_token(0 if token else 1)  # what the grammar does not allow
        push(self, token)

    monkeypatch.setattr(Constraint, "push", failing)
    one, other = (Asked(engine, "Hi", Sampling(grammar=form, max_tokens=9)) for form in (PLATE, None))
    run(scheduler.Scheduler(engine.model, memory_of(engine, 2)), one, other)
    assert "cannot be held to its grammar" in str(one.error)
    assert other.error is None
