"""Slash commands for saved chats, and saving while a chat goes on."""

import json
import shlex
from pathlib import Path

import pytest

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import MllamaError
from mllama_cli.engine.engine import Engine
from tests.chat.harness import PHOTO, ChatHarness


def test_models_and_chats_are_listed_without_a_name(harness: ChatHarness) -> None:
    said = harness.type("/model")
    assert "1. " in said
    assert "sketch" in said
    assert "no saved chats" in harness.type("/load")
    harness.type("One?", "/save first of all")
    said = harness.type("/load")
    assert "first of all" in said
    assert "One?" in said


def test_a_hint_can_be_pasted_into_a_shell(harness: ChatHarness) -> None:
    for name in ("my first chat", "it's", "a;b"):
        said = harness.type("One?", f"/save {name}")
        command = said[said.index("`mllama") + 1 : said.rindex("`")]
        assert shlex.split(command) == ["mllama", "chat", "--resume", name]


def test_chats_are_kept_as_they_go_and_loaded_again(
    harness: ChatHarness, store: ChatStore, engines: tuple[Engine, Engine]
) -> None:
    harness.type(f"/image {PHOTO}", "One?", "/set parameter temperature 0.25", "/system Be brief.", "Two?")
    before = harness.dialogue.conversation
    last = store.last()
    assert last is not None
    assert last.conversation == before
    harness.type("/save birds")
    fresh = ChatHarness(engines[0], store, engines[1])
    said = fresh.type("/history", "/load birds")
    assert "birds" in said
    assert "One?" in said
    assert fresh.dialogue.conversation == before
    assert (fresh.dialogue.sampling.temperature, fresh.dialogue.system) == (0.25, "Be brief.")
    fresh.type("Three?", "/undo", "/undo")
    saved = store.load("birds")
    assert [m.text for m in saved.conversation if m.role == "user"] == ["One?"]
    fresh.type("/clear", "Another?")
    assert len(store.chats()) == 2


def test_a_chat_is_exported(harness: ChatHarness, tmp_path: Path) -> None:
    harness.type(f"/image {PHOTO}", "One?", "/export talk.md", "/export talk.json")
    assert "One?" in (tmp_path / "talk.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert "mllama: " in harness.type("/export talk.exe")


def test_without_a_store_nothing_is_kept_and_saving_says_so(engines: tuple[Engine, Engine]) -> None:
    harness = ChatHarness(engines[0], None, engines[1])
    harness.type("One?")
    assert "--no-log" in harness.type("/save x")
    assert "not saved" in harness.type("/show")


def test_a_store_that_fails_is_told_once_and_the_chat_goes_on(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise MllamaError("The disk is full", "Free some space.")

    monkeypatch.setattr(ChatStore, "save", full)
    said = harness.type("One?", "Two?")
    assert said.count("The disk is full") == 1
    assert harness.roles == ["user", "assistant"] * 2


def test_a_chat_that_cannot_be_saved_says_why_and_can_be_exported(
    engines: tuple[Engine, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked").write_text("a file where the folder should be")
    harness = ChatHarness(engines[0], ChatStore(tmp_path / "blocked" / "chats.db"), engines[1])
    assert "no longer saved" in harness.type("Hello?")
    for command in ("/save trip", "/load trip", "/history"):
        said = harness.type(command)
        assert "--no-log" not in said
        assert "mllama: " in said or "no saved chats" in said, said
    harness.type("/export talk.md", "/export talk.json")
    assert "Hello?" in (tmp_path / "talk.md").read_text()
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"] == "Hello?"
    (tmp_path / "blocked").unlink()
    assert "Saved as trip" in harness.type("/save trip")
    assert ChatStore(tmp_path / "blocked" / "chats.db").load("trip").conversation.messages[0].text == "Hello?"


def test_an_unsaved_chat_is_exported_from_memory(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    harness = ChatHarness(engines[0], None, engines[1])
    assert "still empty" in harness.type(f"/export {tmp_path}/a.md")
    harness.type("Hello?", f"/export {tmp_path}/a.md")
    assert "Hello?" in (tmp_path / "a.md").read_text()
    assert "--no-log" in harness.type("/save trip")


def test_a_chat_that_was_continued_elsewhere_becomes_another_and_says_so(
    harness: ChatHarness, store: ChatStore, engines: tuple[Engine, Engine]
) -> None:
    harness.type("One?", "/save birds")
    other = ChatHarness(engines[0], store, engines[1])
    assert "continued elsewhere" not in other.type("/load birds", "Two?", "Three?")
    said = harness.type("Another two?")
    assert "Chat birds was continued elsewhere meanwhile, so this conversation is chat 2 from here on." in said
    assert "continued elsewhere" not in harness.type("Another three?") + other.type("Four?")
    assert [[m.text for m in store.load(name).conversation if m.role == "user"] for name in ("birds", "2")] == [
        ["One?", "Two?", "Three?", "Four?"],
        ["One?", "Another two?", "Another three?"],
    ]


@pytest.mark.parametrize("sampling", [[1], {"temperature": "warm"}, {"top_k": None}, {"stop": 5}])
def test_a_chat_with_a_damaged_setting_is_not_loaded_and_changes_nothing(
    harness: ChatHarness, store: ChatStore, sampling: object
) -> None:
    harness.type("One?")
    chat = store.save(SavedChat.new("sketch"), Conversation.ask("Two?"), settings={"sampling": sampling})
    before = harness.dialogue.conversation, harness.dialogue.sampling
    assert f"Chat {chat.id} cannot be read" in harness.type(f"/load {chat.id}")
    assert (harness.dialogue.conversation, harness.dialogue.sampling) == before
