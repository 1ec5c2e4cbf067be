"""Help texts and usage errors: plain, short, and pointing on."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.console import run_here

COMMANDS = (
    "", "chat", "caption", "list", "show", "rm", "download", "quantize", "completion", "bench",
    *(f"config {name}" for name in ("", "path", "show", "get", "set", "unset")),
    *(f"history {name}" for name in ("", "list", "show", "export", "rm")),
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "home"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_plain_text_that_fits(command: str) -> None:
    result = run_here(*command.split(), "--help", screen=True)
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert not re.search(r"[<{\[╭│](bool|list|str|int|float)|[{}│╭╰]\.\.\.|[│╭╰]|\[bold|\[\[", result.out)
    assert "-h, --help" in result.out or "--help, -h" in result.out
    assert not re.search(r"\[(default|required|env var|x)\b", result.out), "defaults are in parentheses"


@pytest.mark.parametrize(
    ("line", "says", "hint"),
    [
        ("chat --bogus", "no option --bogus", "mllama chat --help"),
        ("history list --limt 3", "no option --limt", "Did you mean --limit?"),
        ("--bogus", "no option --bogus", "mllama --help"),
        ("completion bsh", "SHELL must be one of bash, zsh, fish, powershell, not 'bsh'", ""),
        ("quantize x --bits 5", "--bits must be one of 4, 8, not '5'", ""),
        ("chat --top-k x hi", "--top-k must be a whole number, not 'x'", ""),
        ("chat --temp hot hi", "--temperature/--temp must be a number, not 'hot'", ""),
        ("history list -n 0", "-n/--limit must be greater than or equal to 1, not '0'", ""),
        ("rm", "MODEL is missing", "mllama rm --help"),
        ("list --json=3", "does not take a value", ""),
        ("list extra", "`mllama list` does not take 'extra'", "mllama list --help"),
        ("serve 11b", "`mllama serve` does not take '11b'", "Did you mean: mllama serve -m 11b"),
        ("chat -i", "-i", ""),
        ("config frob", "No such command 'frob'", "mllama config --help"),
        ("chta", "no command 'chta'", "Did you mean `mllama chat`?"),
        ("frobnicate", "no command 'frobnicate'", "mllama --help"),
        ("models", "no command 'models'", "Did you mean: mllama list"),
        ("'What is this?'", "no command", "Did you mean: mllama chat 'What is this?'"),
        ("is there a cat?", "no command", "Did you mean: mllama chat 'is there a cat?'"),
        ("a.jpg b.PNG 'What differs?'", "no command", "Did you mean: mllama chat -i a.jpg -i b.PNG 'What differs?'"),
        ("'my photo.webp'", "no command", "Did you mean: mllama chat -i 'my photo.webp' 'What is this?'"),
        ("11b hello", "no command '11b'", "Did you mean: mllama chat -m 11b hello"),
        ("mine hello", "no command 'mine'", "Did you mean: mllama chat -m mine hello"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "no command", "Did you mean: mllama chat -m meta-llama/"),
    ],
)
def test_usage_errors_are_two_lines_and_point_on(home: Path, line: str, says: str, hint: str) -> None:
    make_checkpoint(home / "models" / "mine")
    result = run_here(*shlex.split(line))
    assert (result.code, result.out) == (2, "")
    assert len(result.error_lines) == 2, result.err
    assert says in result.error_lines[0]
    assert hint in result.error_lines[1]
    assert "Value error" not in result.err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("serve --max-model-len 4096", "--max-context"),
        ("serve --tensor-parallel-size=2", "--device cuda:all"),
        ("chat --num-predict 5 hi", "--max-tokens"),
        ("caption --load-in-4bit photos", "--quantize int4"),
        ("list --no-color", "the environment variable NO_COLOR=1"),
    ],
)
def test_options_of_other_tools_are_known(words: str, meant: str) -> None:
    result = run_here(*words.split())
    assert result.code == 2
    assert f"Did you mean {meant}? " in result.error_lines[1]


def test_an_option_of_another_tool_is_not_suggested_where_we_have_none() -> None:
    result = run_here("list", "--max-model-len", "4096")
    assert result.code == 2
    assert "--max-context" not in result.err


@pytest.mark.parametrize(
    "word", ["\x1b[31mred", "a\nb", "x" * 10_000, "\udc80", "~nobody-there/x.png", "", "a" * 300 + ".png"]
)
def test_odd_first_words_and_options_stay_two_lines(word: str) -> None:
    for arguments in (
        (word,),
        (f"--{word}",),
        ("chat", f"--{word}"),
        ("history", word),
        ("history", "list", "-n", word),
    ):
        result = run_here(*arguments)
        assert result.code == 2
        assert len(result.error_lines) <= 2
        assert "\x1b" not in result.err
        assert len(result.err) < 3000


def test_run_and_help_are_what_other_tools_call_chat_and_help() -> None:
    answer = run_here("run", "sketch", "--device", "cpu", "--json", "Hello")
    assert answer.code == 0
    assert '"model": "sketch"' in answer.out
    assert "no option --bogus" in run_here("run", "--bogus").err
    assert run_here("help", "chat").out == run_here("chat", "--help").out
    assert run_here("help", "history", "list").out == run_here("history", "list", "--help").out
    assert run_here("help").out == run_here("--help").out


@pytest.mark.parametrize(
    ("line", "code"),
    [("show nosuch --json", 2), ("chat --json -m nosuch hi", 2), ("list --json --bogus", 2),
     ("chat --json --top-k x", 2),
     ("chat --json -i nosuch.png hi", 2), ("history show nobody --json", 2)],
)  # fmt: skip
def test_with_json_errors_are_json_too(line: str, code: int) -> None:
    result = run_here(*shlex.split(line))
    assert (result.code, result.out) == (code, "")
    error = json.loads(result.err)["error"]
    assert error["code"] == code
    assert error["message"]
    assert error["hint"]


def test_json_errors_hide_passwords() -> None:
    result = run_here("chat", "--json", "-i", "http://bob:hunter2@127.0.0.1:1/a.png", "hi")
    assert json.loads(result.err)["error"]["message"]
    assert "hunter2" not in result.err
