"""Fixtures for the interactive chat."""

from pathlib import Path

import pytest

from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.engine.engine import Engine, load
from tests.chat.harness import ChatHarness
from tests.checkpoints import make_checkpoint, text_only_config


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    folder = tmp_path_factory.mktemp("models")
    return (
        load(make_checkpoint(folder / "tiny"), device="cpu", vision=True),
        load(make_checkpoint(folder / "text", text_only_config()), device="cpu"),
    )


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats.db")


@pytest.fixture
def harness(
    engines: tuple[Engine, Engine], store: ChatStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ChatHarness:
    monkeypatch.chdir(tmp_path)
    return ChatHarness(engines[0], store, engines[1])
