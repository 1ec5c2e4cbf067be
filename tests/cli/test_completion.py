"""Tab in a shell: the scripts in completions/, and what they are answered."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.chat.storage.saved import SavedChat
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.cli.completion import ShellName, script
from mllama_cli.core.conversation import Conversation
from tests.checkpoints import make_checkpoint
from tests.console import SCRIPT, run_here

FOLDER = Path(__file__).parents[2] / "completions"
FILES = {
    ShellName.BASH: "mllama.bash",
    ShellName.ZSH: "mllama.zsh",
    ShellName.FISH: "mllama.fish",
    ShellName.POWERSHELL: "mllama.ps1",
}


@pytest.mark.parametrize("shell", list(ShellName))
def test_the_kept_scripts_are_the_commands_own(shell: ShellName) -> None:
    kept = (FOLDER / FILES[shell]).read_text(encoding="utf-8")
    assert kept == script(shell), f"run: mllama completion {shell} > completions/{FILES[shell]}"
    assert run_here("completion", shell.value).out == kept


def test_an_unknown_shell_is_a_usage_error() -> None:
    assert run_here("completion", "tcsh").code == 2


def answered(line: str, **env: str) -> list[str]:
    """Return the completions that bash gets for ``line`` with the cursor at its end."""
    words = line.split()
    asked = {"_MLLAMA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - (line[-1] != " "))}
    done = subprocess.run([SCRIPT], env={**os.environ, **asked, **env}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.endswith("\n") else done.stdout.split("\n")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    make_checkpoint(tmp_path / "models" / "birds-tiny")
    store = ChatStore()
    saved = store.save(SavedChat.new("birds-tiny"), Conversation.ask("One?").with_assistant("1"))
    store.rename(saved, "holiday")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("mllama ch", ["chat"]),
        ("mllama chat --max", ["--max-tokens"]),
        ("mllama chat -m b", ["birds-tiny"]),
        ("mllama chat --model 11b-", ["11b-base", "11b-open", "11b-fp8", "11b-nf4"]),
        ("mllama chat --resume ", ["holiday"]),
        ("mllama chat --device cp", ["cpu"]),
        ("mllama chat --dtype bf", ["bfloat16"]),
        ("mllama show ", ["birds-tiny", "sketch"]),
        ("mllama bench s", ["sketch"]),
        ("mllama bench --random ", ["11b", "90b"]),
        ("mllama bench --quantize ", ["int4", "int8"]),
        ("mllama serve --image-kv ", ["fp8"]),
        ("mllama rm b", ["birds-tiny"]),
        ("mllama download 90", ["90b", "90b-base", "90b-open", "90b-fp8", "90b-nf4"]),
        ("mllama history show h", ["holiday"]),
        ("mllama config set temp", ["temperature"]),
        ("mllama config set theme ", ["auto", "dark", "light", "none"]),
        ("mllama config set log c", ["chats"]),
        ("mllama config set preview ", ["true", "false"]),
        ("mllama config set model b", ["birds-tiny"]),
        ("mllama config set temperature ", []),
        ("mllama completion po", ["powershell"]),
    ],
)
def test_names_are_offered(home: Path, line: str, offers: list[str]) -> None:
    assert [offer for offer in answered(line) if offer] == offers


def test_a_chats_title_is_offered_with_its_name(home: Path) -> None:
    line = {"_TYPER_COMPLETE_ARGS": "mllama chat --resume ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert answered("mllama ", _MLLAMA_COMPLETE="complete_fish", **line) == ["holiday\tOne?"]


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_there_is_one_way_to_the_script(option: str) -> None:
    assert run_here(option).code == 2


def test_a_damaged_store_offers_nothing_and_says_nothing(home: Path) -> None:
    ChatStore().path.write_bytes(b"not a database" * 100)
    assert [offer for offer in answered("mllama chat --resume ") if offer] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_itself(home: Path) -> None:
    line = "mllama chat -m b"
    code = f"""
        source {FOLDER / "mllama.bash"}
        COMP_WORDS=({line}); COMP_CWORD=3; COMP_LINE='{line}'
        _mllama_completion mllama
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["birds-tiny"]


def test_it_imports_little_more_than_a_bare_typer_app(tmp_path: Path) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef chat(): ...\n@app.command()\ndef other(): ...\n"
        "app(prog_name='mllama')\n"
    )
    asked = {**os.environ, "_MLLAMA_COMPLETE": "complete_bash", "COMP_WORDS": "mllama ch", "COMP_CWORD": "1"}

    def imported(script: Path) -> set[str]:
        command = [sys.executable, "-X", "importtime", str(script)]
        done = subprocess.run(command, env=asked, capture_output=True, text=True, check=True)
        assert "chat" in done.stdout
        return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}

    added = imported(SCRIPT) - imported(bare)
    assert "mllama_cli.cli.app" in added
    assert "mllama_cli.cli.chat" not in added
    assert {name.partition(".")[0] for name in added} <= {"mllama_cli", "json", "_json", "atexit"}
    assert {name.split(".")[1] for name in added if name.startswith("mllama_cli.")} == {"__main__", "cli", "core"}
