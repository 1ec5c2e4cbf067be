"""The one shape of `--json`: the table in docs/json.md has every field, and a field means the same in every command."""

import json
import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core import errors
from mllama_cli.core.conversation import Conversation
from tests.conftest import ROOT
from tests.console import run_here

DRAWING = ROOT / "tests/data/drawing.png"
COMMANDS = {
    "chat": f"chat -m sketch --json --no-stdin -i {DRAWING} Hi",
    "caption": "caption -m sketch --json . --workers 0",
    "bench": "bench sketch --device cpu --tokens 2 --json",
    "list": "list --json",
    "show": "show sketch --json",
    "quantize": "quantize sketch ./small --json",
    "history list": "history list --json",
    "history show": "history show 1 --json",
    "config show": "config show --json",
}
FORMS = {
    "chat": [f"chat -m sketch --json --no-stdin -i {DRAWING} --choice yes --choice no Hi"],
    "caption": [
        "caption -m sketch --json good.png --choice yes --choice no",
        "caption -m sketch --json good.png --schema form.json",
    ],
}
"""Commands whose answers have a form, which adds fields."""

USAGE = {"prompt_tokens", "completion_tokens", "images"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """Return the JSON values that each command prints."""
    folder = tmp_path_factory.mktemp("json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLLAMA_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("MLLAMA_CONFIG", str(folder / "config.toml"))
        patch.chdir(folder)
        (folder / "good.png").write_bytes(DRAWING.read_bytes())
        (folder / "bad.png").write_bytes(DRAWING.read_bytes()[:30])
        count = {"type": "integer", "minimum": 0, "maximum": 9}
        (folder / "form.json").write_text(json.dumps({"type": "object", "properties": {"count": count}}))
        ChatStore().save(SavedChat.new("11b"), Conversation.ask("Hi").with_assistant("Hello."), settings={"a": 1})
        printed = {name: run_here(*shlex.split(line)) for name, line in COMMANDS.items()}
        assert {name: result.code for name, result in printed.items()} == dict.fromkeys(COMMANDS, 0) | {"caption": 3}
        yield {name: [json.loads(line) for line in result.out.splitlines()] for name, result in printed.items()}


def documented() -> dict[str, set[str]]:
    """Return the fields that docs/json.md names for each command."""
    text = (ROOT / "docs/json.md").read_text(encoding="utf-8")
    section = text[text.index("## JSON output") :].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z `,]+?) \| (.*) \|$", section, re.MULTILINE)
    return {
        name.strip("`"): set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", fields)))
        for names, fields in rows
        for name in names.split(", ")
    }


def objects(values: list[Any]) -> list[dict[str, Any]]:
    return [each for value in values for each in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "config show"])
def test_the_documentation_names_every_field(command: str, outputs: dict[str, list[Any]]) -> None:
    assert len(outputs[command]) == (2 if command == "caption" else 1), "one value, on one line"
    in_form = [json.loads(run_here(*shlex.split(line)).out) for line in FORMS.get(command, ())]
    shown = set().union(*(each.keys() for each in objects(outputs[command] + in_form)))
    assert shown == documented()[command]


def test_settings_have_a_value_and_its_source(outputs: dict[str, list[Any]]) -> None:
    (settings,) = outputs["config show"]
    assert {frozenset(each) for each in settings.values()} == {frozenset(documented()["config show"])}


def test_a_field_means_the_same_in_every_command(outputs: dict[str, list[Any]]) -> None:
    seen: set[str] = set()
    for command, values in outputs.items():
        for each in objects(values) if command != "config show" else []:
            for name, value in each.items():
                seen.add(name)
                assert is_right(name, value), (command, name, value)
    assert seen >= {"model", "text", "finish_reason", "usage", "seconds", "error", "path", "size", "updated"}


def is_right(name: str, value: Any) -> bool:
    match name:
        case "model" | "path" | "title" | "kind" | "device" | "dtype":
            return isinstance(value, str) and bool(value)
        case "text" | "answer" | "caption" | "name":
            return isinstance(value, str | None)
        case "finish_reason":
            return value in ("stop", "length", "stop_string", "cancelled")
        case "usage":
            return value.keys() == USAGE and all(type(count) is int and count > 0 for count in value.values())
        case "seconds":
            return isinstance(value, float)
        case "error":
            return value is None or value.keys() == {"message", "hint", "kind"}
        case "created" | "updated":
            return datetime.fromisoformat(value).utcoffset() is not None
        case "size" | "size_before" | "size_after" | "width" | "height" | "message_count" | "image_count" | "id":
            return type(value) is int
        case "messages":
            return all(message.keys() >= {"role", "content"} for message in value)
    return True


def test_a_picture_that_fails_has_its_error_in_the_same_form(outputs: dict[str, list[Any]]) -> None:
    good, bad = sorted(outputs["caption"], key=lambda record: bool(record["error"]))
    assert (good["error"], good["text"]) == (None, good["caption"])
    assert good["usage"]["completion_tokens"] == good["tokens"]
    assert bad["text"] is bad["caption"] is None
    assert bad["error"]["kind"] == "image"
    assert bad["error"]["message"]
    assert bad["error"]["hint"]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("chat -m nosuch hi", "model_not_found"),
        ("chat -m sketch -i nosuch.png hi", "image_not_found"),
        ("chat -m sketch -i damaged.png hi", "image"),
        ("chat --bogus", "usage"),
        ("caption -m nosuch damaged.png", "model_not_found"),
        ("caption", "usage"),
        ("bench nosuch", "model_not_found"),
        ("bench --tokens x", "usage"),
        ("list --bogus", "usage"),
        ("show nosuch", "model_not_found"),
        ("quantize nosuch", "model_not_found"),
        ("history list", "chat_store"),
        ("history show 1", "chat_store"),
        ("config show", "usage"),
    ],
)
def test_an_error_is_one_object_on_stderr(
    line: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "damaged.png").write_bytes(DRAWING.read_bytes()[:30])
    (tmp_path / "home" / "chats").mkdir(parents=True)
    (tmp_path / "home" / "chats" / "chats.db").write_bytes(b"not a database at all " * 99)
    (tmp_path / "config.toml").write_text("seed = [" if line == "config show" else "")
    monkeypatch.setenv("MLLAMA_CONFIG", str(tmp_path / "config.toml"))
    result = run_here(*shlex.split(line), "--json", stdin=b"")
    (error_line,) = result.err.splitlines()
    (name, error), *others = json.loads(error_line).items()
    assert (name, others, result.out) == ("error", [], "")
    assert error.keys() == documented()["errors"] - {"error"}
    assert (error["kind"], error["code"]) == (kind, result.code)
    assert error["message"]
    assert error["hint"]


def test_kinds_of_errors_are_told_apart() -> None:
    kinds = {each: each("x").kind for each in vars(errors).values() if isinstance(each, type) and each is not type}
    assert kinds[errors.MllamaError] == "failure"
    assert kinds[errors.ChatNotFoundError] == "chat_not_found"
    assert len(set(kinds.values())) == len(kinds)
