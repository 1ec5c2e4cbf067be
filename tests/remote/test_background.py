"""Engines in the background, as processes: exactly one is started, and no killed process blocks what comes next."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import CheckpointError, EngineError, UsageError
from mllama_cli.core.events import Event, LoadProgress, Prefilled, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import load
from mllama_cli.remote import stop as stopping
from mllama_cli.remote.answerer import RemoteAnswerer, ask_about
from mllama_cli.remote.client import Client
from mllama_cli.remote.engines import EngineKey, find, running
from mllama_cli.remote.start import log_file, shorten_log, start
from mllama_cli.remote.stop import stop
from tests.serving.running import DATA, wait_until

HELLO = Conversation.ask("Hello")
ASK = """
import sys
from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Token
from mllama_cli.remote.engines import EngineKey
from mllama_cli.remote.start import start
from mllama_cli.system.paths import built_in_model
key = EngineKey.of(built_in_model(), "cpu", "float32")
answerer = start("sketch", key, 60)
events = answerer.session().stream(Conversation.ask("Hello"))
print(answerer.info.pid, "".join(event.text for event in events if isinstance(event, Token)))
"""

KILLED_STARTER = """
import os, signal, subprocess, sys
from mllama_cli.remote import start as module
from mllama_cli.remote.engines import EngineKey
from mllama_cli.system.locks import Lock
from mllama_cli.system.paths import built_in_model
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
step = sys.argv[1]
if step == "locked":
    module.bind_private = die
elif step == "listening":
    subprocess.Popen = die
elif step == "started":
    Lock.hand_over = die
module.start("sketch", EngineKey.of(built_in_model(), "cpu", "float32"), 60, progress=die)
"""


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token | Prefilled))


def answer(answerer: RemoteAnswerer, conversation: Conversation = HELLO) -> str:
    return text_of(list(answerer.session().stream(conversation)))


@pytest.fixture(scope="module")
def expected() -> str:
    return text_of(list(load("sketch", device="cpu", dtype="float32").stream(HELLO)))


@pytest.fixture(scope="module")
def endless() -> Sampling:
    """Return what makes an answer thousands of tokens long, which take seconds."""
    return Sampling(max_tokens=4000, logit_bias=dict.fromkeys(load("sketch", device="cpu").model.eos, -100.0))


def kill(answerer: RemoteAnswerer) -> None:
    os.kill(answerer.info.pid, signal.SIGKILL)


def ended(answerer: RemoteAnswerer) -> bool:
    """Return whether the engine's process has ended; one that this process started stays a zombie until it is read."""
    try:
        done, _ = os.waitpid(answerer.info.pid, os.WNOHANG)
    except ChildProcessError:
        return not Path(f"/proc/{answerer.info.pid}").exists()
    return done != 0


@pytest.mark.slow
def test_many_clients_at_once_start_one_engine(key: EngineKey, expected: str) -> None:
    clients = [subprocess.Popen([sys.executable, "-c", ASK], stdout=subprocess.PIPE, text=True) for _ in range(20)]
    said = [client.communicate(timeout=200)[0] for client in clients]
    assert {line.split(" ", 1)[1].strip() for line in said} == {expected.strip()}
    assert len({line.split()[0] for line in said}) == 1
    assert len(running()) == 1


@pytest.mark.slow
def test_an_engine_from_its_start_to_its_idle_end(key: EngineKey, expected: str, sockets: Path) -> None:
    assert find(key) is None
    progress: list[Event] = []
    answerer = start("sketch", key, 600, progress=progress.append)
    assert any(isinstance(event, LoadProgress) and event.done == event.total for event in progress)
    assert answer(answerer) == expected
    assert answerer.about == replace(load("sketch", device="cpu", dtype="float32").about, path=key.path)

    names = [key, replace(key, device="auto"), replace(key, dtype="auto")]
    if load("sketch").device.type == "cpu":
        assert [found.info.pid for each in names if (found := find(each))] == [answerer.info.pid] * 3

    picture = ImagePart((DATA / "drawing.png").read_bytes())
    about = Conversation.ask("What is this?", (picture,))
    here = load("sketch", device="cpu", dtype="float32", vision=True)
    assert answer(answerer, about) == text_of(list(here.stream(about)))
    broken = Conversation.ask("What is this?", (ImagePart(b"no picture", "a.png"),))
    with pytest.raises(Exception, match=r"a\.png") as raised:
        answer(answerer, broken)
    with pytest.raises(type(raised.value)) as local:
        list(here.stream(broken))
    assert str(local.value) == str(raised.value)
    with pytest.raises(UsageError, match="no question to answer"):
        answer(answerer, Conversation())

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("mllama_cli.remote.answerer.PROTOCOL", 0)
        with pytest.raises(EngineError, match="protocol"):
            find(key)

    found = find(key, keep_alive=0.5)
    assert found is not None
    found.close()
    time.sleep(1)
    assert find(key) is not None, "the other client still holds it"
    answerer.close()
    wait_until(lambda: not running())
    wait_until(lambda: not list(sockets.iterdir()))
    assert find(key) is None


@pytest.mark.slow
def test_an_engine_that_is_killed_while_it_answers(key: EngineKey, expected: str, endless: Sampling) -> None:
    answerer = start("sketch", key, 60)
    events = answerer.session().stream(HELLO, endless)
    assert len([next(events) for _ in range(10)]) == 10
    kill(answerer)
    with pytest.raises(EngineError, match="ended before"):
        list(events)
    wait_until(lambda: ended(answerer))
    with pytest.raises(EngineError, match="Nothing answers"):
        answer(answerer)
    assert find(key) is None
    answerer.reconnect = lambda: start("sketch", key, 60)
    assert answer(answerer) == expected

    os.kill(answerer.info.pid, signal.SIGSTOP)  # a client that waits sees it die before it has said anything
    threading.Timer(1, kill, [answerer]).start()
    assert answer(answerer) == expected


@pytest.mark.slow
def test_an_engine_that_hangs(key: EngineKey, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = start("sketch", key, 60)
    os.kill(answerer.info.pid, signal.SIGSTOP)
    impatient = RemoteAnswerer(Client(answerer.client.address, silence=0.5), answerer.info)
    with pytest.raises(EngineError, match="does not answer"):
        answer(impatient)
    monkeypatch.setattr(stopping, "KILLED_SECONDS", 2)
    stop(answerer.client.address)
    assert running() == []


@pytest.mark.slow
@pytest.mark.parametrize("step", ["locked", "listening", "started", "waiting"])
def test_a_starter_that_is_killed_blocks_nobody(step: str, key: EngineKey, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_STARTER, step], timeout=100)
    assert done.returncode == -signal.SIGKILL
    answerer = start("sketch", key, 60)
    assert answer(answerer) == expected
    assert len(running()) == 1


@pytest.mark.slow
def test_closing_an_answer_stops_it_alone(key: EngineKey, expected: str, endless: Sampling) -> None:
    answerer = start("sketch", key, 60)
    events = answerer.session().stream(HELLO, endless)
    next(events)
    assert answer(answerer) == expected
    events.close()
    wait_until(lambda: ask_about(answerer.client.address).running == 0)
    stop(answerer.client.address)
    assert running() == []


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_reported(tmp_path: Path, sockets: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model_type is None"):
        start("broken", EngineKey.of(tmp_path, "cpu"), 60)
    wait_until(lambda: not running())


@pytest.mark.slow
def test_no_pipe_or_terminal_of_the_starter_is_kept(key: EngineKey) -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=100)  # until both close
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout.split()[0])
    assert os.getsid(pid) == pid
    open_files = [file.readlink() for file in Path(f"/proc/{pid}/fd").iterdir()] if sys.platform == "linux" else []
    assert not any("pts" in file.parts for file in open_files)
    assert log_file(key).stat().st_mode & 0o777 == 0o600


def test_a_log_stays_short(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * (3 << 20) + b"\nthe end\n")
        shorten_log(log)
        writer.write(b"more\n")
    assert log.stat().st_size < 1 << 20
    assert log.read_bytes().endswith(b"\nthe end\nmore\n")


def test_a_process_that_cannot_start_is_reported(key: EngineKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.remote.start.MODULE", "mllama_cli.nowhere")
    with pytest.raises(EngineError, match="exit code 1") as raised:
        start("sketch", key, 60)
    assert str(log_file(key)) in raised.value.hint
    assert "nowhere" in log_file(key).read_text()
    assert running() == []
