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
from mllama_cli.remote.client import Address, Client
from mllama_cli.remote.engines import EngineKey, find, running
from mllama_cli.remote.question import STOP_PATH
from mllama_cli.remote.start import start
from mllama_cli.remote.stop import stop
from mllama_cli.system.loopback import PortRecord, listen_on_loopback
from tests.remote.test_background import ASK, HELLO, answer, kill, text_of

HIDE = """
import functools, psutil, socket  # psutil has addresses of its own for each system
socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # which asyncio needs
del socket.AF_UNIX
"""


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
        subprocess.Popen([sys.executable, "-c", HIDE + ASK], stdout=subprocess.PIPE, text=True) for _ in range(4)
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


def test_a_server_is_found_and_stopped_by_commands_of_its_user_alone(key: EngineKey) -> None:
    words = ["mllama", "serve", "--port", "0", "--api-key", "secret", "--device", "cpu", "--dtype", "float32"]
    code = f"{HIDE}import sys\nsys.argv = {words!r}\nfrom mllama_cli.__main__ import main\nmain()\n"
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    public: str = next(word for line in server.stderr for word in line.split() if word.startswith("http"))
    found = find(key)
    assert found is not None
    assert (found.info.pid, found.info.background) == (server.pid, False)
    assert answer(found)
    (address,) = running()
    assert address.file is not None
    assert address.file.stat().st_mode & 0o777 == 0o600
    for place, wrong in ((address, None), (address, "secret"), (Address.parse(public), address.key)):
        with pytest.raises(MllamaError, match="needs its API key"):
            ask_about(replace(place, file=None, key=wrong))
    with pytest.raises(MllamaError, match="stopped on its own machine"):
        Client(Address.parse(public, "secret")).call("POST", STOP_PATH, {})
    stop(address)
    assert server.wait(timeout=60) == 0, "stopped in order"
    assert running() == []
    server.stderr.close()
