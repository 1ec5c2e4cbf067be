"""Several conversations at once answer as one by one."""

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from tests.engine.conftest import picture

CONVERSATIONS = [
    Conversation.ask("Hello, what can you do for me today?"),
    Conversation.ask("What?", (picture(),)),
    Conversation.ask("And what differs?", (picture("red"), picture("blue", (300, 60)))),
    Conversation.ask("One", (picture("green", (60, 200)),)).with_assistant("ok").with_user("Two", (picture("blue"),)),
]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_tokens=20), Sampling(max_tokens=20, temperature=1.0, seed=5, repetition_penalty=1.2)],
    ids=["greedy", "sampled"],
)
def test_a_row_answers_as_it_does_alone(engine: Engine, sampling: Sampling) -> None:
    alone = [
        tuple(event.id for event in engine.stream(conversation, sampling) if isinstance(event, Token))
        for conversation in CONVERSATIONS
    ]
    together = engine.answer_batch(CONVERSATIONS, sampling)
    assert [reply.ids for reply in together] == alone
    assert len(set(alone)) == len(alone), "four equal answers would prove nothing"


def test_rows_end_on_their_own(engine: Engine) -> None:
    free = engine.answer_batch(CONVERSATIONS, Sampling(max_tokens=20))
    printable = next(c for c in free[1].text if c.isprintable() and c != "\ufffd")
    stopped = engine.answer_batch(CONVERSATIONS, Sampling(max_tokens=20, stop=(printable,)))
    assert stopped[1].finish_reason == "stop_string"
    assert stopped[1].text == free[1].text[: free[1].text.index(printable)]
    for before, after in zip(free, stopped, strict=True):
        assert before.ids[: len(after.ids)] == after.ids


def test_an_empty_batch_is_no_work(engine: Engine) -> None:
    assert engine.answer_batch([]) == []
