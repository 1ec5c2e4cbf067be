"""A conversation that is longer than a running engine's context."""

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import ContextLengthError
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import load
from mllama_cli.remote.answerer import RemoteSession, connect
from mllama_cli.remote.client import Address
from mllama_cli.serving.settings import ServerSettings
from tests.serving.running import serving

LONG = Conversation.ask("Is there a star? " * 30)
SAMPLING = Sampling(max_tokens=8, temperature=0)


def answer(session: RemoteSession, conversation: Conversation) -> str:
    return "".join(event.text for event in session.stream(conversation, SAMPLING) if isinstance(event, Token))


def test_the_model_is_opened_once_with_a_longer_context() -> None:
    engine = load("sketch", device="cpu", dtype="float32")
    with serving(load("sketch", device="cpu", dtype="float32"), ServerSettings(grace=0, max_context=64)) as server:
        answerer = connect(Address.parse(server.url))
        assert answerer.about.context == 64
        session = answerer.session()
        with pytest.raises(ContextLengthError):
            answer(session, LONG)
        opened = []
        answerer.open_longer = lambda: opened.append(engine) or engine
        assert answer(session, Conversation.ask("Hello"))
        assert opened == []
        first = answer(session, LONG)
        assert answer(answerer.session(), LONG) == first != ""
        assert opened == [engine]
        assert answerer.about.context == engine.about.context > 64
        with pytest.raises(ContextLengthError):
            answer(session, Conversation.ask("Is there a star? " * 100_000))
