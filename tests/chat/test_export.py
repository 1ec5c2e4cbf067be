"""Saved chats as JSON and Markdown."""

import base64
import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mllama_cli.chat.export import data_url, export_json, export_markdown, write_export
from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.processing.messages import load_messages
from tests.conftest import ROOT

PHOTO = ImagePart((ROOT / "tests/data/sideways.jpg").read_bytes(), "~/Bilder/Kätzchen [1].jpg")
DRAWING = ImagePart((ROOT / "tests/data/drawing.png").read_bytes(), "drawing.png")
TALK = (
    Conversation.ask("What is this?", (PHOTO, DRAWING), system="Be brief.")
    .with_assistant("A *cat* 🐈.\n\n```\ncode\n```")
    .with_user("And now?", (replace(PHOTO, name="again"),))
    .with_assistant("")
)
TOOLS = Conversation(
    (
        *Conversation.ask("Weather?"),
        Message("assistant", (), (ToolCall("sky", '{"city": "```Oslo"}', "call_1"), ToolCall("sea"))),
        Message("tool", (TextPart("rain"),), name="sky", call_id="call_1"),
        Message("assistant", (TextPart("It rains."),), (ToolCall("sea"),)),
    )
)
WHEN = datetime(2026, 8, 1, 12, 30, 15, tzinfo=UTC)


def saved(conversation: Conversation, **fields: object) -> SavedChat:
    return replace(SavedChat(7, "11b", WHEN, WHEN, conversation=conversation), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "conversation",
    [
        TALK,
        Conversation.ask('日本語 \x00\x1b \u2028 "quoted" \\ \'').with_assistant(" \n"),
        TOOLS,
        Conversation((Message("user", (TextPart(""), DRAWING, TextPart("b"), TextPart("c"), PHOTO)),)),
    ],
)
def test_json_is_read_again_as_the_same_conversation(conversation: Conversation, tmp_path: Path) -> None:
    assert write_export(saved(conversation), tmp_path / "talk.json") == (tmp_path / "talk.json",)
    assert load_messages(tmp_path / "talk.json", to_answer=False) == conversation


def test_json_tells_what_belongs_to_the_chat() -> None:
    record = json.loads(export_json(saved(TALK, name="mine", settings={"sampling": {"seed": 1}})))
    assert {key: record[key] for key in ("id", "name", "title", "model", "created", "settings")} == {
        "id": 7,
        "name": "mine",
        "title": "What is this?",
        "model": "11b",
        "created": "2026-08-01T12:30:15+00:00",
        "settings": {"sampling": {"seed": 1}},
    }
    image = record["messages"][1]["content"][0]
    assert image["image_url"]["url"] == "data:image/jpeg;base64," + base64.b64encode(PHOTO.data).decode()
    assert record["messages"][2]["content"].startswith("A *cat*")


def test_a_system_prompt_in_the_settings_leads_the_conversation(tmp_path: Path) -> None:
    chat = saved(Conversation.ask("Hi"), settings={"system": "Be kind."})
    write_export(chat, tmp_path / "talk.json")
    assert load_messages(tmp_path / "talk.json") == Conversation.ask("Hi", system="Be kind.")
    assert "Be kind." in export_markdown(chat)
    assert saved(TALK, settings={"system": "other"}).whole == TALK


def test_what_json_cannot_hold_is_replaced(tmp_path: Path) -> None:
    odd = Conversation((Message("user", (TextPart("\ud83d?"), replace(PHOTO, name="\udce9.jpg"))), Message("user", ())))
    write_export(saved(odd, settings={"x": "\ud800"}), tmp_path / "talk.json")
    first, second = load_messages(tmp_path / "talk.json").messages
    assert first.parts == (TextPart("\ufffd?"), replace(PHOTO, name="\ufffd.jpg"))
    assert second.text == ""


def test_markdown_reads_in_order_with_its_pictures_next_to_it(tmp_path: Path) -> None:
    written = write_export(saved(TALK, name="A *trip*"), tmp_path / "My talk (1).md")
    folder = tmp_path / "My talk (1)_images"
    assert written == (tmp_path / "My talk (1).md", folder / "1.jpg", folder / "2.png")
    assert (folder / "1.jpg").read_bytes() == PHOTO.data
    assert (folder / "2.png").read_bytes() == DRAWING.data
    text = written[0].read_text(encoding="utf-8")
    assert text.startswith("# A \\*trip\\*\n\n*11b, 2026-08-01")
    expected = [
        "## System", "Be brief.", "## You", "![Kätzchen \\[1\\].jpg](My%20talk%20%281%29_images/1.jpg)",
        "![drawing.png](My%20talk%20%281%29_images/2.png)", "What is this?", "## Assistant", "A *cat* 🐈.",
        "## You", "![again](My%20talk%20%281%29_images/1.jpg)", "And now?", "## Assistant",
    ]  # fmt: skip
    places = [text.index(piece) for piece in expected[:8]] + [text.rindex(piece) for piece in expected[8:]]
    assert places == sorted(places)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_markdown_as_a_string_has_its_pictures_in_it() -> None:
    addresses = re.findall(r"!\[.*?\]\((.*?)\)", export_markdown(saved(TALK)))
    assert addresses == [data_url(PHOTO), data_url(DRAWING), data_url(PHOTO)]


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ("```python\nprint(1)", "print(1)\n```"),
        ("~~~~\n~~~\nx", "x\n~~~~"),
        ("````\n```\nx\n```", "```\n````"),
        ("```\ndone\n```", "done\n```"),
        ("```inline``` and more", "more"),
        ("```\n``` not the end", "end\n```"),
    ],
)
def test_a_code_block_that_an_answer_was_stopped_in_is_ended(answer: str, end: str) -> None:
    talk = Conversation.ask("Code?").with_assistant(answer).with_user("More")
    assert f"{end}\n\n## You\n\nMore\n" in export_markdown(saved(talk))


def test_markdown_has_calls_of_tools_and_who_answered() -> None:
    text = export_markdown(saved(TOOLS))
    assert '## Assistant\n\n````\nsky({"city": "```Oslo"})\n````\n\n```\nsea({})\n```\n\n## Tool sky\n\nrain\n' in text


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    path = tmp_path / "talk.md"
    path.write_text("mine")
    with pytest.raises(UsageError, match="already exists") as caught:
        write_export(saved(TALK), path)
    assert "--force" in caught.value.hint
    assert path.read_text() == "mine"
    assert not (tmp_path / "talk_images").exists()
    write_export(saved(TALK), path, overwrite=True)
    assert "What is this?" in path.read_text(encoding="utf-8")
    path.unlink()
    with pytest.raises(UsageError, match="talk_images already exists"):
        write_export(saved(TALK), path)
    write_export(saved(Conversation.ask("no pictures")), path)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_export(saved(TALK), tmp_path / "link.json", overwrite=True)
    assert (tmp_path / "link.json").is_symlink()
    assert load_messages(tmp_path / "real.json", to_answer=False) == TALK


def test_files_beside_and_links_that_nobody_named_stay(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (f".talk.md.{os.getpid()}.partial", ".talk.md.partial", "talk.md.tmp", ".talk.md.tmp"):
        (tmp_path / name).symlink_to(victim)
    folder = tmp_path / "talk_images"
    folder.mkdir()
    (folder / "1.jpg").symlink_to(victim)
    os.link(victim, folder / "2.png")
    write_export(saved(TALK), tmp_path / "talk.md", overwrite=True)
    assert (folder / "1.jpg").read_bytes() == PHOTO.data
    assert victim.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 7
    (tmp_path / "new.json").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="already exists"):
        write_export(saved(TALK), tmp_path / "new.json")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "other_images").symlink_to(folder)
    with pytest.raises(UsageError, match="is not a folder"):
        write_export(saved(TALK), tmp_path / "other.md", overwrite=True)


@pytest.mark.parametrize("length", [200, 240, 251])
def test_long_names(length: int, tmp_path: Path) -> None:
    for suffix in (".md", ".json"):
        path = tmp_path / ("x" * (length + 4 - len(suffix)) + suffix)
        assert write_export(saved(TALK), path)[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["talk", "talk.txt", "none/talk.md", ".md", "folder.md"])
def test_places_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(UsageError) as caught:
        write_export(saved(TALK), tmp_path / name, overwrite=True)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["folder.md"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "talk.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MllamaError, match="No space left"):
        write_export(saved(TALK), path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]
    assert path.read_text() == "old"


def test_links_in_a_circle_are_replaced_where_asked(tmp_path: Path) -> None:
    circle = tmp_path / "circle.json"
    circle.symlink_to(circle)
    with pytest.raises(UsageError, match="already exists"):
        write_export(saved(TALK), circle)
    write_export(saved(TALK), circle, overwrite=True)
    assert load_messages(circle, to_answer=False) == TALK
