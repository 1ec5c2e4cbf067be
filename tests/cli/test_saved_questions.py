"""Single questions are saved on a terminal, unless the settings say otherwise."""

import json
from pathlib import Path

import pytest

from mllama_cli.cli.common import read_settings
from tests.checkpoints import make_checkpoint
from tests.console import Result, run_here

NEVER = 10**6


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MLLAMA_CONFIG", str(tmp_path / "config.toml"))
    make_checkpoint(tmp_path / "home" / "models" / "tiny", seed=3, generation={"eos_token_id": [NEVER]})
    return tmp_path / "home"


def ask(*arguments: str, screen: bool = True) -> Result:
    result = run_here("chat", "--max-tokens", "8", "--device", "cpu", *arguments, screen=screen)
    assert result.code == 0, result.err
    return result


def counts() -> list[int]:
    return [chat["message_count"] for chat in json.loads(run_here("history", "list", "--json").out)]


def test_a_question_on_a_terminal_is_kept_and_continued() -> None:
    ask("first question")
    assert counts() == [2]
    result = ask("-c", "and more", screen=False)
    assert 'Continuing 1 "first question" (2 messages, 0 min ago)' in result.err
    assert "Continuing" not in result.out
    assert counts() == [4]


def test_piped_and_raw_questions_are_not_kept() -> None:
    ask("piped", screen=False)
    ask("--no-log", "secret")
    ask("--raw", "verbatim")
    assert counts() == []


@pytest.mark.parametrize(
    ("value", "means", "kept"),
    [("all", "all", 1), ("chats", "chats", 0), ("none", "none", 0),
     ("true", "chats", 0), ("on", "chats", 0), ("false", "none", 0), ("no", "none", 0)],
)  # fmt: skip
def test_the_setting_and_its_former_values(tmp_path: Path, value: str, means: str, kept: int) -> None:
    assert run_here("config", "set", "log", value).code == 0
    assert run_here("config", "get", "log").out == f"{means}\n"
    ask("hello")
    assert len(counts()) == kept


@pytest.mark.parametrize(("text", "means"), [("true", "chats"), ("false", "none"), ('"all"', "all")])
def test_files_of_earlier_versions_are_understood(tmp_path: Path, text: str, means: str) -> None:
    (tmp_path / "config.toml").write_text(f"log = {text}\n")
    assert read_settings(tmp_path / "config.toml").log == means


@pytest.mark.parametrize("text", ["1", '"some"', "[true]", "0.5"])
def test_other_values_are_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(f"log = {text}\n")
    result = run_here("chat", "hello")
    assert (result.code, result.out) == (2, "")
    assert "log must be" in result.err


def test_an_answer_is_given_even_if_it_cannot_be_saved(home: Path) -> None:
    (home / "chats").write_text("in the way")
    result = ask("hello")
    assert result.out
    assert "was not saved" in result.err
