"""The model that runs where none is named."""

import json
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.console import Result, run_here

META = "meta-llama/Llama-3.2-11B-Vision-Instruct"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        make_checkpoint(tmp_path / "home" / "models" / name)
    return tmp_path / "home"


def ask(*arguments: str, typed: bytes = b"", screen: bool = True, stdin: bytes | None = None) -> Result:
    more = ("--max-tokens", "1", "--device", "cpu", "--json", "--no-log", "hello")
    return run_here("chat", *arguments, *more, typed=typed, screen=screen, stdin=stdin)


@pytest.mark.parametrize("typed", [b"2\n", b"x\n2\n", b"0\n99\n 2 \n"])
def test_a_choice_by_number_is_kept(typed: bytes) -> None:
    chosen = ask(typed=typed)
    assert chosen.code == 0, chosen.err
    assert '"model": "second"' in chosen.out
    assert "1  first" in chosen.err
    again = ask()
    assert '"model": "second"' in again.out
    assert "Which model" not in again.err


@pytest.mark.parametrize("typed", [b"", b"\n", b"a\nb\nc\n"])
def test_no_choice_is_a_usage_error_that_names_the_cure(typed: bytes) -> None:
    result = ask(typed=typed)
    assert (result.code, result.out) == (2, "")
    assert "mllama config set model NAME" in result.err


def test_nobody_is_asked_without_a_terminal() -> None:
    result = ask(stdin=b"", screen=False)
    assert (result.code, result.out) == (2, "")
    error = json.loads(result.err)["error"]
    assert "first, second" in error["message"]
    assert "mllama config set model NAME" in error["hint"]


def test_the_model_used_last_runs_again_until_it_is_deleted(home: Path) -> None:
    assert ask("-m", "first").code == 0
    assert '"model": "first"' in ask().out
    assert ask("-m", "second").code == 0
    assert '"model": "second"' in ask(stdin=b"", screen=False).out
    make_checkpoint(home / "models" / "third")
    run_here("rm", "--yes", "second")
    assert "Which model" in ask().err


def test_scripts_paths_and_the_built_in_model_do_not_change_what_runs(home: Path) -> None:
    assert ask("-m", "first").code == 0
    assert ask("-m", "second", screen=False).code == 0
    assert ask("-m", str(home / "models" / "second")).code == 0
    assert ask("-m", "sketch").code == 0
    assert '"model": "first"' in ask().out


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\0", b"nonsense", b"../..", b"x" * 100_000])
def test_a_damaged_memory_is_no_memory(home: Path, damage: bytes) -> None:
    (home / "last-model").write_bytes(damage)
    assert "Which model" in ask().err


def test_quantize_says_how_to_use_the_result(home: Path) -> None:
    result = run_here("quantize", "first", "a name", screen=True)
    assert result.code == 0, result.err
    assert "Use it: mllama chat -m 'a name'" in result.err
    assert "mllama config set model 'a name'" in result.err
    assert "Use it" not in run_here("quantize", "first", "--bits", "8").err
