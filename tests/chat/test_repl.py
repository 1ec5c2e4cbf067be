"""The loop of the interactive chat: messages, Ctrl-C, shortages of memory and context, and that no line ends it."""

from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mllama_cli.chat.commands.registry import find_command
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.answerer import Answerer, Prompt
from mllama_cli.core.errors import EngineError, UsageError
from mllama_cli.core.events import Event, ReadingPrompt
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.forward import Decoder
from tests.chat.harness import ChatHarness, interrupt_after


def test_questions_are_answered_until_the_person_leaves(harness: ChatHarness) -> None:
    harness.type("One?", "Two?", "/bye", "Three?")
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"] == ["One?", "Two?"]
    assert harness.typed.lines == ["Three?"]
    assert harness.out.text().strip()


def test_what_is_typed_ahead_is_not_sent_after_ctrl_c_nor_taken_for_a_choice(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.typed.queue = "and then?"
    with monkeypatch.context() as patch:
        patch.setattr(harness.out, "write", interrupt_after(1, harness.out.write))
        harness.type("Go on.")
    assert harness.typed.shown[-1] == ([], "and then?")
    harness.type("/clear", "x" * 700, "y" * 700)
    harness.typed.queue = "o"
    harness.typed.choices = ["k"]
    harness.type("z" * 700)
    assert harness.typed.shown[-1] == ([], "z" * 700 + "\no")


def test_a_message_that_is_too_long_alone_costs_no_other(harness: ChatHarness) -> None:
    harness.type("One?", "Two?")
    said = harness.type("v" * 3000)
    assert "This message alone is too long" in said
    assert "Nothing was removed" in said
    assert harness.typed.shown[-1] == ([], "v" * 3000)
    assert "This message alone is too long" in harness.type("a word " * 10000), "not even tokenized"
    assert harness.roles == ["user", "assistant"] * 2


def test_a_message_that_begins_with_a_path_is_no_command(tmp_path: Path) -> None:
    assert find_command("hello /image") is None
    assert find_command(str(tmp_path)) is None
    assert find_command("/usr/bin is a folder") is None
    assert find_command("/tmp") is None
    for line in ("/image a b.png", "/IMAGE a b.png", "  /image   a b.png "):
        found = find_command(line)
        assert found is not None
        assert (found[0].names[0], found[1]) == ("image", "a b.png")
    with pytest.raises(UsageError):
        find_command("/" + "x" * 400)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.dialogue.set_sampling(max_tokens=400)
    write = harness.out.write
    interrupted = interrupt_after(3, write)
    monkeypatch.setattr(harness.out, "write", interrupted)
    said = harness.type("Go on.")
    assert "Stopped." in said
    assert harness.roles == ["user", "assistant"]
    assert 0 < len(harness.dialogue.last_answer) < 400
    monkeypatch.setattr(harness.out, "write", write)
    harness.dialogue.set_sampling(max_tokens=5)
    harness.type("And now?")
    assert harness.roles == ["user", "assistant"] * 2


def test_memory_that_runs_out_leaves_what_was_said_and_the_chat(
    harness: ChatHarness, store: ChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Decoder.tokens

    def short(self: Decoder, *arguments: Any) -> Iterator[int]:
        tokens = decode(self, *arguments)
        yield from islice(tokens, 3)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "tokens", short)
        said = harness.type("Go on.")
    assert "not enough memory" in said
    assert harness.roles == ["user", "assistant"]
    kept = store.last()
    assert kept is not None
    assert [message.role for message in kept.whole.messages] == ["user", "assistant"]
    harness.type("And now?")
    assert harness.roles == ["user", "assistant"] * 2


def test_memory_that_runs_out_before_the_first_word_gives_the_question_back(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Decoder, *arguments: Any) -> Iterator[int]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "tokens", none)
        harness.type("A long question.")
    assert harness.roles == []
    assert harness.typed.shown[-1] == ([], "A long question.")


def test_after_making_room_a_shortage_of_memory_gives_the_question_back_too(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Decoder, *arguments: Any) -> Iterator[int]:
        raise MemoryError

    harness.type("x" * 1900)
    harness.typed.choices = ["n"]
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "tokens", none)
        harness.type("y" * 700)
    assert harness.roles == []
    assert harness.typed.shown[-1] == ([], "y" * 700)


def test_a_shortage_of_memory_elsewhere_leaves_the_chat(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(name: str) -> Engine:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(harness.shell, "load_engine", no_room)
    said = harness.type("One?", "/model other", "Two?")
    assert "There is not enough memory for this" in said
    assert harness.roles == ["user", "assistant"] * 2


def test_a_full_context_asks_what_should_go(harness: ChatHarness) -> None:
    harness.type("x" * 700, "y" * 700)
    assert harness.roles == ["user", "assistant"] * 2
    harness.typed.choices = ["k"]
    said = harness.type("z" * 700)
    assert "more than this model can read" in said
    assert harness.roles == ["user", "assistant"] * 2
    assert harness.typed.shown[-1] == ([], "z" * 700), "what was typed is not lost"
    harness.typed.choices = ["o"]
    harness.type("z" * 700)
    assert [m.text[0] for m in harness.dialogue.conversation if m.role == "user"] == ["y", "z"]
    harness.typed.choices = ["n"]
    harness.type("w" * 1500)
    assert [m.text[0] for m in harness.dialogue.conversation if m.role == "user"] == ["w"]
    said = harness.type("v" * 3000)
    assert "alone is too long" in said


class EndedSession:
    """A session of an engine that was killed."""

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Generator[Event]:
        yield ReadingPrompt(0, 1)
        raise EngineError("The engine ended before the answer was complete", "Ask again.")


def test_an_engine_that_ended_is_opened_again_for_the_next_answer(harness: ChatHarness) -> None:
    opened: list[str] = []
    engine = harness.dialogue.engine

    def load_engine(name: str) -> Answerer:
        opened.append(name)
        return engine

    harness.shell.load_engine = load_engine
    harness.dialogue.session = EndedSession()
    assert "The engine ended before the answer was complete" in harness.type("Hello")
    assert (harness.roles, opened) == ([], [])
    assert harness.typed.shown[-1] == ([], "Hello"), "the question is given back"
    harness.type("Hello again", "And again")
    assert opened == [engine.about.name]
    assert harness.roles == ["user", "assistant"] * 2
    harness.dialogue.session = EndedSession()
    harness.type("/regen", "/regen")
    assert len(opened) == 2
    assert harness.roles == ["user", "assistant"] * 2


def test_a_nearly_full_context_is_told_once(harness: ChatHarness) -> None:
    said = harness.type("x" * 1900, "Two?")
    assert said.count("nearly full") == 1


@pytest.mark.parametrize(
    "line",
    [
        "/read ~nosuch/x.txt",
        "/read a\0b",
        f"/read {'a' * 300}/x.txt",
        "/export ~nosuch/x.md",
        f"/export {'a' * 300}/x.md",
        f"/export {'a' * 300}.md",
        "/export a\0b.md",
        f"/image {'a' * 300}/x.png",
        "/image ~nosuch/x.png",
        "/image file://[x.png",
        "/image http://[x.png",
        f"please see {'a' * 300}/x.png thanks",
        f"'{'a' * 300}/x.png'",
        "file://[x.png",
        "see file://[::1/x.png",
        "~nosuch/x.png",
        f"/{'a' * 300}",
        "/\0",
        "\udc80/x.png",
        "/load \udc80",
        "/model ~nosuch/model",
        "/save a\0b",
        "/set parameter seed 1\0",
        "/history \0\udc80",
    ],
    ids=lambda line: repr(line[:24]),
)
def test_no_line_ends_the_chat(harness: ChatHarness, line: str) -> None:
    harness.type("Hello?", line)
    harness.type("Still there?")
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"][-1] == "Still there?"


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error", "x.png"), ValueError("odd\n\x1b[2J"), RuntimeError("strange"), KeyError("k")],
)
def test_an_unforeseen_error_is_one_line(harness: ChatHarness, error: Exception) -> None:
    def load_engine(name: str) -> Engine:
        raise error

    harness.shell.load_engine = load_engine
    said = harness.type("/model other").splitlines()
    assert len(said) == 2
    assert said[0].startswith("mllama: ")
    assert "The chat goes on." in said[1]
    harness.type("Still there?")
    assert harness.roles == ["user", "assistant"]


def test_a_prompt_that_only_looks_like_a_name_is_asked(harness: ChatHarness) -> None:
    for text in (f"{'word ' * 60} name this picture shapes.png", "~5 shapes? name them like shapes.png"):
        harness.type(text)
        assert harness.dialogue.conversation.messages[-2].text == text
