"""Background engines where there are no Unix sockets: on a port of this machine, protected by a token."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mllama_cli.core.errors import EngineError, MllamaError
from mllama_cli.engine.engine import load
from mllama_cli.remote.answerer import ask_about
from mllama_cli.remote.client import Address
from mllama_cli.remote.engines import EngineKey, Registration, find, running
from mllama_cli.remote.start import start
from mllama_cli.remote.stop import stop
from mllama_cli.system.loopback import PortRecord, listen_on_loopback
from tests.remote.test_background import ASK, HELLO, answer, kill, text_of

HIDE = "import socket\ndel socket.AF_UNIX\n"


@pytest.fixture(autouse=True)
def no_unix_sockets(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")


def test_only_who_has_the_token_is_answered(sockets: Path, key: EngineKey) -> None:
    answerer = start("sketch", key, 600)
    here = load("sketch", device="cpu", dtype="float32")
    assert answer(answerer) == text_of(list(here.stream(HELLO)))
    (address,) = running()
    assert address.file is not None
    assert address.file.stat().st_mode & 0o777 == 0o600
    assert ask_about(address).pid == answerer.info.pid == PortRecord.read(address.file).process
    for token in (None, "guessed"):
        with pytest.raises(MllamaError, match="needs its API key"):
            ask_about(replace(address, file=None, key=token))
    found = find(key)
    assert found is not None
    assert found.info.pid == answerer.info.pid
    stop(address)
    assert running() == []
    assert find(key) is None


def test_a_killed_engine_is_started_again(key: EngineKey) -> None:
    first = start("sketch", key, 600)
    kill(first)
    second = start("sketch", key, 600)
    assert second.info.pid != first.info.pid
    assert len(running()) == 1


@pytest.mark.slow
def test_many_clients_at_once_load_one_engine() -> None:
    clients = [
        subprocess.Popen([sys.executable, "-c", HIDE + ASK], stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    said = [client.communicate(timeout=200)[0] for client in clients]
    assert len(set(said)) == 1
    assert said[0].strip()
    assert len(running()) == 1


def test_a_record_is_new_and_must_be_whole(tmp_path: Path) -> None:
    bound, token = listen_on_loopback(tmp_path / "a.sock", 1)
    with bound:
        assert Address.of_file(tmp_path / "a.sock").key == token
        with pytest.raises(FileExistsError):
            listen_on_loopback(tmp_path / "a.sock", 1)
    for text in ("", '{"port": 1', "[]", '{"port": 1}'):
        (tmp_path / "b.sock").write_text(text)
        with pytest.raises(EngineError) as raised:
            Address.of_file(tmp_path / "b.sock")
        assert raised.value.is_absent


def test_a_server_is_not_found_without_unix_sockets(key: EngineKey) -> None:
    with pytest.raises(EngineError, match="no Unix sockets"):
        Registration.create([key])
