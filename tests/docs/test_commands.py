"""Run what the README and the pages of docs/ show, with the built-in model in the place of 11B."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllama_cli import load
from mllama_cli.cli.app import COMMANDS
from tests.console import SCRIPT, run_here, run_script
from tests.docs.pages import PAGES, Block, blocks, commands, read
from tests.docs.workplace import make_workplace
from tests.serving.running import Server, serving

ADDRESS = "127.0.0.1:11434"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the command lines are for a POSIX shell")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the built-in model, called 11b."""
    folder = tmp_path_factory.mktemp("server")
    make_workplace(folder, "")
    with contextlib.chdir(folder):
        engine = load("11b", device="cpu", vision=True)
    with serving(engine) as running:
        yield running


@pytest.fixture(scope="module")
def engine_folder() -> Iterator[Path]:
    """A folder where commands find an engine with the built-in model, so that none of them loads it."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        assert run_script("chat", "-m", "sketch", "--keep-alive", "10m", "--max-tokens", "1", "Hi").code == 0
        yield Path(folder)
        run_script("stop", "--all")


@pytest.fixture
def workplace(engine_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is empty, and an empty home."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(engine_folder))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MLLAMA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("PATH", f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return tmp_path / "work"


def run(line: str) -> tuple[int, str]:
    """Run a command line, in this process if it is one plain mllama command; return its exit code and all it prints."""
    if plain(line):
        result = run_here(*shlex.split(line, comments=True)[1:], stdin=b"")
        return result.code, result.out + result.err
    done = subprocess.run(
        ["bash", "-c", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


def plain(line: str) -> bool:
    """Return whether a line is one mllama command, without anything that a shell would do but quoting."""
    unquoted = re.sub(r"'[^']*'|\"[^\"$`]*\"| #.*", "", line)
    return line.startswith("mllama ") and not re.search(r"[|&;<>$`*~]", unquoted)


def run_block(block: Block) -> None:
    if block.language == "bash":
        for line in commands(block):
            code, shown = run(line)
            assert code == 0, f"{line}\n{shown}"
    elif block.language == "console":
        for each in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, expected = each.partition("\n")
            assert run(line)[1] == expected, line
    elif block.language == "python":
        exec(compile(block.text, "page.py", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.is_run for block in blocks(page))])
def test_what_a_page_shows_can_be_done(page: str, workplace: Path, request: pytest.FixtureRequest) -> None:
    if page == "documents-and-video":
        for module in ("pypdfium2", "av"):
            pytest.importorskip(module, reason="of the extras pdf and video")
    make_workplace(workplace, read(page))
    for block in blocks(page):
        if not block.is_run:
            continue
        text = block.text
        if ADDRESS in text:
            text = text.replace(ADDRESS, f"127.0.0.1:{request.getfixturevalue('server').port}")
        with contextlib.redirect_stdout(io.StringIO()):
            run_block(Block(block.language, text, block.line, True))


def test_outputs_are_shown_and_compared() -> None:
    assert sum(block.language == "console" and block.is_run for page in PAGES for block in blocks(page)) >= 5


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_cannot_run_here_are_at_least_right(page: str) -> None:
    for block in blocks(page):
        if block.language != "bash" or block.is_run:
            continue
        for line in commands(block):
            for each in re.findall(r"(?:^|[&;|] ?|do )(?:[A-Z_]+=\S+ )?mllama ([^&;|#]*)", line):
                parse(shlex.split(each.replace('"$f"', "f")))


def parse(words: list[str]) -> None:
    """Parse a command line as mllama does, without running it."""
    command = {each.name: each for each in COMMANDS}[words[0]].load()
    rest = words[1:]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], rest).close()
