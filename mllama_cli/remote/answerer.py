"""A running engine as an Answerer."""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from mllama_cli.core.answerer import Answerer, AnswerSession, ModelInfo, Prompt
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import ContextLengthError, EngineError, ShuttingDownError
from mllama_cli.core.events import Event, GenerationStats, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.remote.client import Address, Client
from mllama_cli.remote.codec import from_json, to_json
from mllama_cli.remote.events import read_event
from mllama_cli.remote.question import (
    ANSWER_PATH,
    CHOICES_PATH,
    ENGINE_PATH,
    PROTOCOL,
    READY_PATH,
    Choices,
    EngineInfo,
    Probabilities,
    Question,
    Use,
)

Progress = Callable[[Event], None]


class RemoteAnswerer:
    """An Answerer whose model another process holds. Made by ``connect``.

    It keeps an engine of this machine from ending for want of use until ``close``, or the end of this process.

    Attributes:
        reconnect: if set, is called once for the questions that find no engine any more, and returns another.
        open_longer: if set, is called once for a conversation that is longer than the engine's context, and returns
            the model with a longer one, which answers from then on.
    """

    def __init__(self, client: Client, info: EngineInfo, hold: Generator[dict[str, Any]] | None = None) -> None:
        self.client, self.info = client, info
        self._hold = hold
        self.reconnect: Callable[[], RemoteAnswerer] | None = None
        self.open_longer: Callable[[], Answerer] | None = None
        self._longer: Answerer | None = None
        self._reconnecting = threading.Lock()

    @property
    def about(self) -> ModelInfo:
        about = self.info.about
        return about if self._longer is None else replace(about, context=self._longer.about.context)

    @property
    def fallback_reason(self) -> str:
        return self.info.fallback_reason

    def call_model(self, name: str) -> None:
        """Show the model under the name that the user gave it here."""
        self.info = replace(self.info, about=replace(self.info.about, name=name))

    def load_weights(self, *, vision: bool = False) -> Iterator[Event]:
        """Yield nothing: the weights are loaded."""
        return iter(())

    def session(self) -> "RemoteSession":
        return RemoteSession(self)

    def longer(self) -> Answerer | None:
        """Return the model with a longer context; None if there is none."""
        if self._longer is None and self.open_longer is not None:
            self._longer = self.open_longer()
        return self._longer

    def close(self) -> None:
        """Let the engine go. Questions may still be asked."""
        if self._hold is not None:
            self._hold.close()

    def leave(self, client: Client, error: EngineError) -> None:
        """Ask another engine with the same model from now on, as nothing answers ``client`` any more.

        Several threads may find that out. Raise ``error`` if none is found.
        """
        with self._reconnecting:
            if self.client is not client:
                return
            if self.reconnect is None:
                raise error
            other = self.reconnect()
            self.close()
            self.client, self._hold = other.client, other._hold
            self.info = replace(other.info, about=replace(other.about, name=self.about.name))


class RemoteSession:
    """An AnswerSession. The engine finds what earlier turns left in its caches by itself."""

    def __init__(self, answerer: RemoteAnswerer) -> None:
        self._answerer = answerer
        self._notices: set[str] = set()
        self._longer: AnswerSession | None = None

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Generator[Event]:
        """Yield the events of an answer. Closing the generator stops the answer.

        Raise what the engine raises, or EngineError if it ends or says nothing.
        """
        if isinstance(prompt, Conversation):
            prompt.require_answerable()
        if self._longer is not None:
            yield from self._longer.stream(prompt, sampling)
            return
        question, client = to_json(Question(prompt, sampling)), self._answerer.client
        try:
            yield from self._ask(client, question)
        except ContextLengthError as error:
            yield from self._require_longer(error).stream(prompt, sampling)
        except EngineError as error:
            if not error.is_absent:
                raise
            self._answerer.leave(client, error)
            yield from self._ask(self._answerer.client, question)

    def probabilities(self, prompt: Prompt, texts: Sequence[str]) -> Mapping[str, float]:
        """Return how likely each text is as the whole answer, as the engine finds it. Raise as ``stream`` does."""
        if self._longer is not None:
            return self._longer.probabilities(prompt, texts)
        client, asked = self._answerer.client, to_json(Choices(prompt, tuple(texts)))
        try:
            found = from_json(Probabilities, client.call("POST", CHOICES_PATH, asked), str(client.address), EngineError)
        except ContextLengthError as error:
            return self._require_longer(error).probabilities(prompt, texts)
        return dict(zip(texts, found.probabilities, strict=True))

    def _require_longer(self, error: ContextLengthError) -> AnswerSession:
        """Return a session with a longer context, which has the conversation from now on. Raise ``error`` if none."""
        if (longer := self._answerer.longer()) is None:
            raise error
        self._longer = longer.session()
        return self._longer

    def _ask(self, client: Client, question: Any) -> Generator[Event]:
        with closing(_unless_ending(client.lines("POST", ANSWER_PATH, question))) as lines:
            for data in lines:
                event = read_event(data)
                if isinstance(event, Notice):
                    if event.text in self._notices:
                        continue
                    self._notices.add(event.text)
                yield event
                if isinstance(event, GenerationStats):
                    return


def connect(address: Address, *, keep_alive: float | None = None, progress: Progress | None = None) -> RemoteAnswerer:
    """Return the engine at an address when it is ready. ``progress`` is called with the events of its loading.

    ``keep_alive`` is how many seconds an engine that was started for commands stays after its last use; None leaves
    that as it is. Raise EngineError if nothing answers, or what kept the engine from loading.
    """
    client = Client(address)
    holds = address.file is not None
    lines = _unless_ending(client.lines("POST", READY_PATH, to_json(Use(keep_alive, holds))))
    try:
        for data in lines:
            if "event" not in data:
                return RemoteAnswerer(client, _info(data, address), lines if holds else None)
            event = read_event(data)
            if progress is not None:
                progress(event)
    except BaseException:
        lines.close()
        raise
    raise AssertionError("lines never end without an error")


def _unless_ending(lines: Generator[dict[str, Any]]) -> Generator[dict[str, Any]]:
    """Yield an engine's lines. Raise an absent EngineError if all that it says is that it is shutting down."""
    heard = False
    with closing(lines):
        try:
            for data in lines:
                heard = True
                yield data
        except ShuttingDownError as error:
            if heard:
                raise
            absent = EngineError(error.message, error.hint)
            absent.is_absent = True
            raise absent from error


def ask_about(address: Address) -> EngineInfo:
    """Return what an engine says about itself, without using it. Raise EngineError, or BusyError while it loads."""
    return _info(Client(address).call("GET", ENGINE_PATH), address)


def _info(data: dict[str, Any], address: Address) -> EngineInfo:
    if (protocol := data.get("protocol")) != PROTOCOL:
        raise EngineError(
            f"The engine on {address} speaks protocol {protocol!r}, and this mllama {PROTOCOL}",
            "Use the same version of mllama on both sides.",
        )
    return from_json(EngineInfo, data, f"The engine on {address} cannot be understood", EngineError)
