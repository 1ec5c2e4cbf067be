"""`mllama history`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import ChatStoreError
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.processing.messages import load_messages
from tests.conftest import ROOT
from tests.console import run_here

DRAWING = ImagePart((ROOT / "tests/data/drawing.png").read_bytes(), "/home/me/drawing.png")
CAT = Conversation.ask("What is this?", (DRAWING,)).with_assistant("A cat, *perhaps*.")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def keep(conversation: Conversation, name: str = "") -> SavedChat:
    store = ChatStore()
    chat = store.save(SavedChat.new("11b"), conversation, settings={"system": "Be kind."})
    return store.rename(chat, name) if name else chat


def numbers() -> list[int]:
    return sorted(chat.id for chat in ChatStore().chats())


def test_list_shows_the_newest_first() -> None:
    keep(CAT, "cat")
    keep(Conversation.ask("[/b] [red]no markup[/red] :smile:"))
    result = run_here("history", "list")
    assert (result.code, result.err) == (0, "")
    header, newest, oldest = result.out.splitlines()
    assert header.split() == ["ID", "NAME", "TITLE", "MESSAGES", "IMAGES", "MODEL", "DATE"]
    assert newest.split()[0] == "2"
    assert "[/b] [red]no markup[/red] :smile:" in newest
    assert oldest.split()[:8] == ["1", "cat", "What", "is", "this?", "2", "1", "11b"]
    assert run_here("history", "ls").out == result.out


def test_list_for_scripts() -> None:
    keep(CAT, "cat")
    keep(Conversation.ask("Hello"))
    everything = json.loads(run_here("history", "list", "--json").out)
    assert [
        (chat["id"], chat["name"], chat["title"], chat["message_count"], chat["image_count"]) for chat in everything
    ] == [
        (2, None, "Hello", 1, 0),
        (1, "cat", "What is this?", 2, 1),
    ]
    assert json.loads(run_here("history", "list", "--json", "--search", "PERHAPS").out) == everything[1:]
    assert json.loads(run_here("history", "list", "--json", "-n", "1").out) == everything[:1]
    assert json.loads(run_here("history", "list", "--json", "--search", "nowhere").out) == []


@pytest.mark.parametrize("columns", [72, 90, 200])
def test_on_a_narrow_screen_only_title_and_model_give_way(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    chat = keep(Conversation.ask("many words " * 9), "a-name-to-copy")
    ChatStore().save(chat, chat.conversation, model="meta-llama/Llama-3.2-11B-Vision-Instruct")
    lines = run_here("history", "list", screen=True).out.splitlines()
    assert len(lines) == 2
    number, name, *_, date, time = re.sub(r"\x1b\[[\d;]*m", "", lines[1]).split()
    assert (number, name) == ("1", "a-name-to-copy")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", f"{date} {time}")


def test_nothing_saved_yet(home: Path) -> None:
    result = run_here("history", "list")
    assert (result.code, result.out) == (0, "")
    assert "no saved chats" in result.err
    assert run_here("history", "list", "--json").out == "[]\n"
    assert "no saved chats" in run_here("history", "rm", "--all", "--yes").err
    keep(CAT)
    assert "'dog'" in run_here("history", "list", "--search", "dog").err


def test_show_is_a_plain_transcript() -> None:
    keep(CAT.with_user("Sure?"), "cat")
    result = run_here("history", "show", "ca")
    assert (result.code, result.err) == (0, "")
    head, *turns = result.out.split("\n\n")
    assert head.startswith("1  cat\n11b, ")
    assert turns == [
        "System:\nBe kind.",
        "You:\n[image: /home/me/drawing.png]\nWhat is this?",
        "Assistant:\nA cat, *perhaps*.",
        "You:\nSure?\n",
    ]


def test_show_has_calls_of_tools_and_who_answered() -> None:
    call, answer = ToolCall("sky", '{"city": "Oslo"}', "call_1"), TextPart("rain")
    asked = (*CAT.messages[:1], Message("assistant", (), (call,)), Message("tool", (answer,), name="sky"))
    keep(Conversation(asked), "tools")
    for screen in (False, True):
        shown = re.sub(r"\x1b\[[\d;]*m", "", run_here("history", "show", "tools", screen=screen).out)
        assert '\nAssistant:\n[call: sky({"city": "Oslo"})]\n\nTool sky:\nrain\n' in shown
    (Path("talk.json")).write_text(run_here("history", "show", "tools", "--json").out, encoding="utf-8")
    assert load_messages("talk.json", to_answer=False).messages[1:] == asked


def test_a_saved_chat_cannot_steer_the_terminal_nor_break_a_pipe() -> None:
    keep(Conversation.ask("\x1b]0;owned\x07[red]a[/red]", (ImagePart(b"x", "\x1b[2J\udce9"),)).with_assistant("\ud83d"))
    shown = run_here("history", "show", "1", screen=True)
    assert shown.code == 0
    assert "\x1b]0" not in shown.out
    assert "\x1b[2J" not in shown.out
    assert "[red]a[/red]" in shown.out
    piped = run_here("history", "show", "1")
    assert "\x1b]0;owned" in piped.out
    assert "\ufffd" in piped.out
    assert run_here("history", "list").code == run_here("history", "export", "1").code == 0


def test_what_is_shown_as_json_and_exported_is_what_chat_reads(tmp_path: Path) -> None:
    keep(CAT, "cat")
    assert run_here("history", "export", "cat", "talk.json").code == 0
    (tmp_path / "shown.json").write_text(run_here("history", "show", "1", "--json").out, encoding="utf-8")
    wanted = Conversation.ask("What is this?", (DRAWING,), "Be kind.").with_assistant("A cat, *perhaps*.")
    for file in ("talk.json", "shown.json"):
        assert load_messages(tmp_path / file, to_answer=False) == wanted


def test_export_as_markdown(tmp_path: Path) -> None:
    keep(CAT)
    result = run_here("history", "export", "1", "talk.md")
    assert (result.code, result.out) == (0, "")
    assert "Wrote talk.md, and 1 image to talk_images." in result.err
    assert (tmp_path / "talk_images" / "1.png").read_bytes() == DRAWING.data
    assert "](talk_images/1.png)" in (tmp_path / "talk.md").read_text(encoding="utf-8")
    assert "](data:image/png;base64," in run_here("history", "export", "1").out
    assert run_here("history", "export", "1", "-").out == run_here("history", "export", "1").out
    on_screen = run_here("history", "export", "1", screen=True).out
    assert "base64" not in on_screen
    assert "](/home/me/drawing.png)" in on_screen


def test_export_writes_over_nothing_unasked(tmp_path: Path) -> None:
    keep(CAT)
    (tmp_path / "talk.json").write_text("mine")
    refused = run_here("history", "export", "1", "talk.json")
    assert refused.code == 2
    assert "--force" in refused.err
    assert (tmp_path / "talk.json").read_text() == "mine"
    assert run_here("history", "export", "1", "talk.json", "--force").code == 0
    assert load_messages(tmp_path / "talk.json", to_answer=False)


def test_rm_asks_first() -> None:
    keep(CAT, "cat")
    keep(Conversation.ask("Hello"))
    kept = run_here("history", "rm", "cat")
    assert "Delete 1 (cat, 2 messages)? [y/N]" in kept.err
    assert "Not deleted." in kept.err
    assert numbers() == [1, 2]
    unasked = run_here("history", "rm", "cat", stdin=b"y\n")
    assert unasked.code == 2
    assert "--yes" in unasked.err
    assert numbers() == [1, 2]
    gone = run_here("history", "rm", "CAT", "1", "--yes")
    assert (gone.code, gone.out) == (0, "")
    assert gone.err.count("Deleted 1 (cat, 2 messages).") == 1
    assert numbers() == [2]


def test_a_yes_typed_at_the_terminal_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(CAT)
    keep(CAT)
    keep(CAT)
    for answer, arguments, left in (("y\n", ["1"], [2, 3]), ("no\n", ["--all"], [2, 3]), ("Yes\n", ["--all"], [])):
        monkeypatch.setattr("tests.console.Stream.readline", lambda *_, answer=answer: answer)
        result = run_here("history", "rm", *arguments)
        assert result.code == 0
        assert numbers() == left
    assert "Delete all 2 saved chats? [y/N]" in result.err


def test_rm_all() -> None:
    keep(CAT)
    keep(Conversation.ask("Hello"))
    assert run_here("history", "rm", "--all").code == 0
    assert numbers() == [1, 2]
    assert "Deleted 2 chats." in run_here("history", "rm", "--all", "--yes").err
    assert numbers() == []


def test_rm_deletes_nothing_where_one_name_is_wrong() -> None:
    keep(CAT, "cat")
    keep(CAT, "trip-2024")
    for arguments in (["1", "trip", "--yes"], ["1", "99", "-y"], ["1", "--all", "--yes"], ["--yes"]):
        result = run_here("history", "rm", *arguments)
        assert result.code == 2
        assert len(result.error_lines) == 2
    assert "'trip-2024'" in run_here("history", "rm", "trip", "--yes").err
    assert numbers() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "dgo"], "Did you mean 'dog'?"),
        (["show", "do"], "several chats begin with it: 'dog', 'door'"),
        (["show", "99"], "no saved chat 99"),
        (["show", ""], "no saved chat"),
        (["show", "cat", "--bad"], "--bad"),
        (["show"], "CHAT"),
        (["export", "nobody", "a.md"], "'nobody'"),
        (["export", "dog", "a.txt"], ".json"),
        (["export", "dog", "none/a.md"], "none"),
        (["rm", "nobody"], "'nobody'"),
        (["list", "-n", "0"], "-n"),
        (["lst"], "lst"),
    ],
)
def test_bad_requests_exit_2_with_a_reason(arguments: list[str], message: str) -> None:
    keep(CAT, "dog")
    keep(CAT, "door")
    result = run_here("history", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_a_damaged_file_is_one_clear_error(home: Path) -> None:
    (home / "chats").mkdir(parents=True)
    (home / "chats" / "chats.db").write_bytes(b"not a database at all " * 99)
    for arguments in (["list"], ["show", "1"], ["export", "1"], ["rm", "1", "--yes"], ["rm", "--all", "--yes"]):
        result = run_here("history", *arguments)
        assert result.code == 1
        assert "damaged" in result.err
        assert len(result.error_lines) == 2
    with pytest.raises(ChatStoreError):
        run_here("history", "list", "--debug")


def test_help_and_lists_import_nothing_heavy() -> None:
    keep(CAT)
    for arguments in (["history", "--help"], ["history", "list", "--json"], ["history", "show", "1"]):
        code = (
            "import sys\n"
            "from mllama_cli.__main__ import main\n"
            f"sys.argv = ['mllama', *{arguments!r}]\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "heavy = ('torch', 'PIL', 'numpy', 'prompt_toolkit', 'httpx', 'tokenizers')\n"
            "print('HEAVY', [name for name in heavy if name in sys.modules])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "HEAVY []"
