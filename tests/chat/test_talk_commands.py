"""Slash commands for the conversation: take back, edit, read, copy."""

from pathlib import Path

import pytest

from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation
from mllama_cli.terminal import clipboard
from tests.chat.harness import PHOTO, ChatHarness, photo


def test_conversations_are_cleared_undone_edited_and_regenerated(harness: ChatHarness) -> None:
    assert "nothing was asked" in harness.type("/undo")
    assert "nothing was asked" in harness.type("/regen")
    harness.type(f"/image {PHOTO}", "One?", "Two?", "/regen", "/undo")
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"] == ["One?"]
    harness.type("/edit", "One, changed?")
    assert harness.typed.shown[-2] == (["drawing.png"], "One?")
    assert harness.dialogue.conversation.messages[0].text == "One, changed?"
    assert harness.dialogue.conversation.images[0].data == photo().data
    harness.type("/clear")
    assert harness.roles == []


def test_editing_loses_nothing_before_the_new_question_is_answered(harness: ChatHarness, store: ChatStore) -> None:
    def questions() -> list[str]:
        kept = store.last()
        assert kept is not None
        said = [[m.text for m in chat if m.role == "user"] for chat in (kept.whole, harness.dialogue.conversation)]
        assert said[0] == said[1]
        return said[0]

    harness.type(f"/image {PHOTO}", "One?", "Two?", "/edit")
    assert harness.typed.shown[-1] == ([], "Two?")
    assert questions() == ["One?", "Two?"]
    harness.type("/edit", "/images")
    assert questions() == ["One?", "Two?"]
    harness.type("/undo", f"/image {PHOTO}", "/edit")
    assert harness.typed.shown[-1] == (["drawing.png"], "One?")
    harness.typed.cleared = True
    harness.type("/edit", "A new one?")
    harness.typed.cleared = False
    assert questions() == ["One?", "A new one?"]
    assert len(harness.dialogue.conversation.images) == 2, "the attached one went with the new question"
    harness.type("/edit", "/nowhere/at/all.png too?")
    assert questions() == ["One?", "A new one?"]
    harness.type("/edit", "Three?")
    assert questions() == ["One?", "Three?"]


def test_an_edited_question_that_is_too_long_leaves_the_old_one(harness: ChatHarness) -> None:
    harness.type("One?", "/edit", "x" * 3000)
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"] == ["One?"]
    assert harness.typed.shown[-1] == ([], "x" * 3000)


def test_what_undo_removes_can_be_restored(harness: ChatHarness, store: ChatStore) -> None:
    harness.type("One?", "Two?")
    before = harness.dialogue.conversation
    harness.type("/undo", "/undo", "/redo", "/redo")
    assert harness.dialogue.conversation == before
    kept = store.last()
    assert kept is not None
    assert kept.conversation == before
    assert "nothing to restore" in harness.type("/undo", "Three?", "/redo")


def test_text_of_a_file_goes_with_the_next_message(harness: ChatHarness, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("a note\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" ")
    said = harness.type("/read nope.txt", "/read binary", "/read empty", "/read", f"/read {tmp_path}")
    assert said.count("mllama: ") == 5
    assert "not UTF-16 text" in said
    harness.type("/read my notes.txt", "/read ./my notes.txt", f"/read {tmp_path}/my notes.txt")
    assert harness.typed.shown[-1] == (["my notes.txt 1 line"], "")
    assert "1. my notes.txt 1 line" in harness.type("/images")
    harness.type(f"/image {PHOTO}", "/detach 2")
    assert harness.typed.shown[-1] == (["drawing.png"], "")
    harness.type("/detach", "/read my notes.txt", "Sum up.")
    assert harness.dialogue.conversation.messages[0].text == "my notes.txt:\na note\n\nSum up."


def test_answers_and_code_are_copied(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_text", lambda terminal, text: copied.append(text))
    assert "no answer to copy" in harness.type("/copy")
    harness.dialogue.conversation = Conversation.ask("Code?").with_assistant(
        "Here:\n```python\nfirst\n```\nand\n```\nsecond\n  more\n```"
    )
    harness.type("/copy", "/copy code")
    assert copied == [harness.dialogue.last_answer, "second\n  more"]
    assert "takes no argument" in harness.type("/copy that")
    harness.dialogue.conversation = Conversation.ask("Code?").with_assistant("None.")
    assert "no code block" in harness.type("/copy code")
