"""A client whose server shuts down asks another engine, as if the server had ended already."""

import threading
from contextlib import ExitStack

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import EngineError, MllamaError
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import load
from mllama_cli.remote.answerer import RemoteAnswerer, connect
from mllama_cli.remote.client import Address
from mllama_cli.serving.service import Service
from tests.serving.running import Server, serving

HELLO = Conversation.ask("Hello")


def connected(server: Server) -> RemoteAnswerer:
    return connect(Address.parse(server.url))


def text(answerer: RemoteAnswerer) -> str:
    return "".join(event.text for event in answerer.session().stream(HELLO) if isinstance(event, Token))


def test_threads_that_find_a_server_shutting_down_ask_one_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(load("sketch", device="cpu")) as first, serving(load("sketch", device="cpu")) as second:
        answerer, calls, said = connected(first), [], []
        expected = text(answerer)
        monkeypatch.setattr(Service, "state", property(lambda self: "draining" if self is first.service else "ok"))
        with pytest.raises(EngineError, match="takes no requests now") as refused:
            connected(first)
        assert refused.value.is_absent, "so that a command loads the model by itself"
        with pytest.raises(EngineError, match="takes no requests now"):
            text(answerer)

        def reconnect() -> RemoteAnswerer:
            calls.append(second)
            return connected(second)

        answerer.reconnect = reconnect
        threads = [threading.Thread(target=lambda: said.append(text(answerer))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == [expected] * 6
        assert len(calls) == 1


def test_half_an_answer_is_not_asked_for_again() -> None:
    engine = load("sketch", device="cpu")
    endless = Sampling(max_tokens=4000, logit_bias=dict.fromkeys(engine.model.eos, -100.0))
    with ExitStack() as running:
        answerer = connected(running.enter_context(serving(engine)))
        answerer.reconnect = lambda: pytest.fail("its beginning has been seen")
        events = answerer.session().stream(HELLO, endless)
        assert any(isinstance(event, Token) for event in events)
        running.close()
        with pytest.raises(MllamaError):
            list(events)
