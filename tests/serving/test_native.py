"""What our own commands ask a server over the network."""

import socket
import threading

import httpx
import pytest

from mllama_cli.core.answerer import RawPrompt
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ContextLengthError, EngineError, ImageError, MllamaError, UsageError
from mllama_cli.core.events import EncodingImage, Event, GenerationStats, Notice, Token
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from mllama_cli.remote.answerer import RemoteAnswerer, ask_about, connect
from mllama_cli.remote.client import Address
from mllama_cli.serving.settings import ServerSettings
from tests.serving.running import DATA, Server, serving, wait_until

USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
PICTURE = ImagePart((DATA / "drawing.png").read_bytes(), "drawing.png")


@pytest.fixture
def answerer(server: Server) -> RemoteAnswerer:
    return connect(Address.parse(server.url))


def tokens(events: list[Event]) -> list[Token]:
    return [event for event in events if isinstance(event, Token)]


@pytest.mark.parametrize(
    "prompt",
    [
        Conversation.ask("What is this?", (PICTURE,), "Be brief."),
        Conversation.ask("Hello").with_prefill("Hello! Show"),
        RawPrompt(f"{USER}<|image|>What is this?{ASSISTANT}", (PICTURE,), "I see"),
    ],
    ids=["picture", "prefill", "raw"],
)
@pytest.mark.parametrize("sampling", [None, Sampling(3.0, seed=7, logprobs=2, max_tokens=12)], ids=["own", "hot"])
def test_the_events_are_those_of_an_engine_here(
    answerer: RemoteAnswerer, sketch: Engine, prompt: Conversation | RawPrompt, sampling: Sampling | None
) -> None:
    there = list(answerer.session().stream(prompt, sampling))
    here = list(sketch.session().stream(prompt, sampling))
    assert [(token.id, token.text) for token in tokens(there)] == [(token.id, token.text) for token in tokens(here)]
    kinds = [{type(event) for event in events} - {EncodingImage} for events in (there, here)]
    assert kinds[0] == kinds[1], "but for an image that an engine has encoded before"
    last, own = there[-1], here[-1]
    assert isinstance(last, GenerationStats)
    assert isinstance(own, GenerationStats)
    assert (last.finish_reason, last.prompt_tokens, last.images, last.completion_tokens) == (
        own.finish_reason, own.prompt_tokens, own.images, own.completion_tokens,
    )  # fmt: skip
    assert answerer.about == sketch.about


CHOICES = ("red ring", "blue star", "I see 3 red circles.")


@pytest.mark.parametrize(
    "prompt",
    [Conversation.ask("What is this?", (PICTURE,)), Conversation.ask("Hello").with_prefill("red "), RawPrompt("Say")],
    ids=["picture", "prefill", "raw"],
)
def test_probabilities_of_choices_are_those_of_an_engine_here(
    answerer: RemoteAnswerer, sketch: Engine, prompt: Conversation | RawPrompt
) -> None:
    there = answerer.session().probabilities(prompt, CHOICES)
    assert there == pytest.approx(sketch.session().probabilities(prompt, CHOICES), abs=1e-6)
    assert sum(there.values()) == pytest.approx(1)
    with pytest.raises(ContextLengthError):
        answerer.session().probabilities(Conversation.ask("word " * 20_000), CHOICES)


def test_an_answer_has_the_form_that_was_asked_for(answerer: RemoteAnswerer) -> None:
    said = answerer.session().stream(Conversation.ask("Hello"), Sampling(3.0, grammar=Grammar.choices(CHOICES)))
    assert "".join(token.text for token in tokens(list(said))) in CHOICES
    refused = answerer.session().stream(
        Conversation.ask("Hello").with_prefill("x"), Sampling(grammar=Grammar.regex("a"))
    )
    with pytest.raises(UsageError, match="cannot begin with 'x'"):
        list(refused)


def test_a_notice_comes_once_in_a_conversation(answerer: RemoteAnswerer) -> None:
    twice = Conversation.ask("What is this?", (PICTURE,)).with_assistant("A drawing.").with_user("And?", (PICTURE,))
    session = answerer.session()
    assert [isinstance(event, Notice) for event in session.stream(twice)].count(True) == 1
    assert not any(isinstance(event, Notice) for event in session.stream(twice))


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        (Conversation.ask("What is this?", (ImagePart(b"text", "notes.txt"),)), ImageError),
        (Conversation.ask("word " * 20_000), ContextLengthError),
    ],
    ids=["image", "length"],
)
def test_errors_are_those_of_an_engine_here(
    answerer: RemoteAnswerer, prompt: Conversation, kind: type[MllamaError]
) -> None:
    with pytest.raises(kind):
        list(answerer.session().stream(prompt))


def test_closing_an_answer_stops_it(answerer: RemoteAnswerer, server: Server) -> None:
    bias = {int(id_): bias for id_, bias in server.endless.items()}
    events = answerer.session().stream(Conversation.ask("Hello"), Sampling(max_tokens=4000, logit_bias=bias))
    next(events)
    events.close()
    wait_until(server.idle)


def test_the_key_is_sent_and_asked_for(sketch: Engine) -> None:
    with serving(sketch, ServerSettings(api_key="secret", grace=0)) as server:
        assert connect(Address.parse(server.url, "secret")).about == sketch.about
        with pytest.raises(MllamaError, match="needs its API key") as raised:
            connect(Address.parse(server.url))
        assert "MLLAMA_API_KEY" in raised.value.hint


def test_a_server_is_not_stopped_over_the_network(server: Server) -> None:
    refused = httpx.post(f"{server.url}/mllama/stop")
    assert refused.status_code == 403
    assert ask_about(Address.parse(server.url)).running == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"prompt": {"text": 7}}', b'{"prompt": {}, "sampling": 7}'])
def test_damaged_questions_are_errors_of_the_client(server: Server, body: bytes) -> None:
    refused = httpx.post(f"{server.url}/mllama/answer", content=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["kind"] == "usage"


def test_what_is_not_mllama_is_told(server: Server) -> None:
    with pytest.raises(EngineError, match="is not mllama"):
        connect(Address.parse(f"{server.url}/elsewhere"))


def test_nobody_there_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = Address.parse(f"127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(EngineError, match=f"Nothing answers on {address}"):
            connect(address)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\n",
        b'HTTP/1.1 200 OK\r\n\r\n{"event": "Token"}\n',
        b'HTTP/1.1 200 OK\r\n\r\n{"protocol": 1}\n',
        b"HTTP/1.1 500 Oops\r\n\r\n<html>",
    ],
)
def test_a_server_that_says_something_else_is_one_clear_error(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.recv(10_000)
                connected.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(EngineError):
            connect(Address.parse(f"127.0.0.1:{listener.getsockname()[1]}"))
        thread.join()
