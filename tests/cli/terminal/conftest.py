"""Chats on a terminal with the built-in model, which answers truly."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console import run_script
from tests.terminal_chat import TerminalChat

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {
        "MLLAMA_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "MLLAMA_NOHISTORY": "",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("drawing.png", "card.png"):
        shutil.copy(DATA / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def engine_folder() -> Iterator[str]:
    """A folder where chats find an engine with the built-in model, so that they need not load it."""
    with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as folder:
        names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "MLLAMA_HOME", "HF_HUB_CACHE")
        env = {"OMP_NUM_THREADS": "1", "MLLAMA_CONFIG": f"{folder}/none", **dict.fromkeys(names, folder)}
        asked = run_script("chat", "-m", "sketch", "--keep-alive", "10m", "--max-tokens", "1", "Hi", env=env)
        assert asked.code == 0, asked.err
        yield folder
        run_script("stop", "--all", env=env)


@pytest.fixture
def served(env: dict[str, str], engine_folder: str) -> dict[str, str]:
    """The environment of a chat whose answers that engine gives."""
    return {**env, "XDG_RUNTIME_DIR": engine_folder}


@pytest.fixture
def chat(pictures: Path, served: dict[str, str]) -> Iterator[TerminalChat]:
    with TerminalChat("chat", "--no-preview", cwd=pictures, env=served) as running:
        running.at_prompt()
        yield running
