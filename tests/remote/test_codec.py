"""What is written as JSON comes back the same, and nothing else is taken."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllama_cli.core.answerer import RawPrompt
from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import EngineError, ImageNotFoundError, MllamaError, UsageError
from mllama_cli.core.events import Event, GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.remote.codec import from_json, to_json
from mllama_cli.remote.events import error_fields, event_line, read_error, read_event
from mllama_cli.remote.question import Question

STATS = GenerationStats("stop", 5, 0, 1, 2, 0.5, 1, 0.25)


def through(data: Any) -> Any:
    return json.loads(json.dumps(to_json(data)))


@given(st.text(), st.binary(), st.text(), st.text())
def test_conversations(text: str, picture: bytes, name: str, answer: str) -> None:
    asked = Conversation.ask(text, (ImagePart(picture, name.encode("utf-8", "replace").decode()),), "Be brief")
    calls = Message("assistant", (TextPart(answer),), (ToolCall("look", '{"a": 1}', "1"),))
    whole = Conversation((*asked, calls, Message("tool", (TextPart("7"),), name="look", call_id="1")))
    assert from_json(Conversation, through(whole), "it") == whole
    assert from_json(Question, through(Question(whole)), "it") == Question(whole)


@pytest.mark.parametrize(
    "sampling", [None, Sampling(), Sampling(0.5, logit_bias={7: -3.0}, logprobs=2, seed=2**63, stop=("a", "b"))]
)
def test_questions(sampling: Sampling | None) -> None:
    question = Question(RawPrompt("<|image|>What", (ImagePart(b"\0\xff"),), "It"), sampling)
    assert from_json(Question, through(question), "it") == question


@given(st.from_type(Event))
def test_events(event: Event) -> None:
    assert repr(read_event(json.loads(event_line(event)))) == repr(event)  # which compares NaN, too


def test_probabilities_of_zero() -> None:
    event = Token(7, "\ud83d", float("-inf"), ((1, -0.5), (2, float("-inf"))))
    line = event_line(event)
    assert line.count(b"\n") == 1
    assert read_event(json.loads(line)) == event


@pytest.mark.parametrize("kind", sorted(get_args(Event), key=str))
def test_an_event_of_wrong_types_is_an_error(kind: type[Event]) -> None:
    with pytest.raises(EngineError):
        read_event({"event": kind.__name__, **{name: {} for name in kind.__dataclass_fields__}})


@pytest.mark.parametrize("data", [{}, {"event": 3}, {"event": "Shout"}, {**to_json(STATS), "event": "Token"}])
def test_what_is_not_an_event_is_an_error(data: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        read_event(data)


DAMAGED: list[Any] = [
    7,
    [],
    {"messages": 7},
    {"messages": [{"parts": []}]},
    {"messages": [{"role": "boss", "parts": []}]},
    {"messages": [{"role": "user", "parts": [{"text": 7}]}]},
    {"messages": [{"role": "user", "parts": [{"text": "a", "data": "YQ=="}]}]},
    {"messages": [{"role": "user", "parts": [{"data": "a!", "name": "x"}]}]},
    {"messages": [{"role": "user", "parts": [], "mood": "good"}]},
]


@pytest.mark.parametrize("data", DAMAGED, ids=str)
def test_damaged_conversations_are_refused(data: Any) -> None:
    with pytest.raises(UsageError, match=r"^The request: "):
        from_json(Conversation, data, "The request")


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="Top-p"):
        from_json(Question, {**through(Question(Conversation.ask("a"))), "sampling": {"top_p": 7}}, "The request")


@pytest.mark.parametrize("error", [ImageNotFoundError("a.png is missing", "Look."), MllamaError("no")], ids=repr)
def test_errors_keep_their_kind(error: MllamaError) -> None:
    read = read_error(json.loads(json.dumps(error_fields(error))))
    assert read is not None
    assert (type(read), read.message, read.hint, read.exit_code) == (
        type(error), error.message, error.hint, error.exit_code,
    )  # fmt: skip


def test_errors_of_a_newer_engine_are_errors_all_the_same() -> None:
    read = read_error({"error": {"message": "too hot\x1b[2J", "kind": "temperature"}})
    assert (type(read), str(read)) == (MllamaError, "too hot[2J")
    assert read_error({"error": "text"}) is None


def test_statistics_keep_their_fields() -> None:
    assert replace(STATS, images=2) == read_event(json.loads(event_line(replace(STATS, images=2))))
