"""One model over several devices, here CPU processes, by the command: the same answers, and nothing is left."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from mllama_cli.engine.parallel.crew import MODULE
from tests.console import SCRIPT, Result, run_here, run_script
from tests.serving.running import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sockets of Unix")

DATA = Path(__file__).parents[1] / "data"
THREE = "cpu,cpu,cpu"
"""The built-in model has 3 key/value heads."""
LOST = "mllama: The process of rank {}, which computes a part of the model, ended: killed by SIGKILL"
ENV = {"OMP_NUM_THREADS": "1", "MLLAMA_NO_SERVER": "1"}


def followers(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Return the processes of other ranks that a command has started and that have not ended."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):  # it ends now
            if MODULE in child.cmdline():
                found.append(child)
    return found


def start(*words: str) -> "subprocess.Popen[bytes]":
    command = [str(SCRIPT), *words]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ENV}
    )


def finished(process: "subprocess.Popen[bytes]", seconds: float = 60) -> Result:
    out, err = process.communicate(timeout=seconds)
    return Result(process.returncode, out.decode(), err.decode())


def hello(server: "subprocess.Popen[bytes]") -> str:
    """Say hello to a server once it listens; return its answer."""
    assert server.stderr is not None
    line = server.stderr.readline().decode()
    while " on http" not in line:
        line = server.stderr.readline().decode()
    url = next(word for word in line.split() if word.startswith("http"))
    asked = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).json()
    return str(answer["choices"][0]["message"]["content"])


def test_a_question_has_the_answer_of_one_device() -> None:
    question = ("-m", "sketch", "--image", str(DATA / "drawing.png"), "Describe this picture.")
    one = run_here("chat", "--device", "cpu", "--no-server", *question, stdin=b"")
    three = run_script("chat", "--device", THREE, *question, env=ENV)
    assert (three.code, three.err) == (0, "")
    assert three.out == one.out
    assert "3 red circles" in three.out


@pytest.mark.slow
def test_captions_are_those_of_one_device(tmp_path: Path) -> None:
    outputs = []
    for device, *more in (("cpu",), (THREE,), ("cpu,cpu", "--replicas")):
        output = tmp_path / f"{len(outputs)}.jsonl"
        words = ("caption", "-m", "sketch", "--device", device, *more, str(DATA), "--output", str(output))
        result = run_script(*words, env=ENV) if "," in device else run_here(*words, "--no-server")
        assert result.code == 0, result.err
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        outputs.append(sorted((line["path"], line["caption"]) for line in lines))
    assert outputs[1] == outputs[2] == outputs[0]
    assert len(outputs[0]) >= 5


def test_replicas_need_several_devices() -> None:
    result = run_here("caption", "-m", "sketch", "--device", "cpu", "--replicas", str(DATA), "--output", "-")
    assert (result.code, result.out) == (2, "")
    assert result.error_lines[0] == "mllama: --replicas needs several devices"


@pytest.mark.slow
def test_a_replica_that_is_killed_ends_the_run_which_can_be_resumed(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes((DATA / "drawing.png").read_bytes() + bytes([number]))
    never = tmp_path / "8.png"
    os.mkfifo(never)  # an image that does not come, so that the run cannot end before
    words = ("caption", "-m", "sketch", str(tmp_path))
    process = start(*words, "--device", "cpu,cpu", "--replicas")
    wait_until(lambda: len(list(tmp_path.glob("*.txt"))) >= 2)
    followers(process)[0].kill()
    result = finished(process)
    assert result.code == 1
    assert LOST.format(1) in result.err
    assert 2 <= len(list(tmp_path.glob("*.txt"))) <= 8
    never.unlink()
    never.write_bytes((DATA / "drawing.png").read_bytes())
    assert run_here(*words, "--device", "cpu", "--no-server").code == 0
    assert len(list(tmp_path.glob("*.txt"))) == 9


@pytest.mark.slow
def test_a_server_over_several_devices_ends_with_any_of_them() -> None:
    server = start("serve", "-m", "sketch", "--device", THREE, "--port", "0")
    assert "simple drawing" in hello(server)
    ranks = followers(server)
    assert len(ranks) == 2
    ranks[1].kill()
    killed = time.monotonic()
    result = finished(server)
    assert time.monotonic() - killed < 30  # not the hour that a collective operation may take
    assert result.code == 1
    assert LOST.format(2) in result.err
    wait_until(lambda: not any(rank.is_running() for rank in ranks))


@pytest.mark.slow
def test_the_processes_of_a_server_that_nobody_asks_end_with_its_weights() -> None:
    server = start("serve", "-m", "sketch", "--device", THREE, "--port", "0", "--keep-alive", "1s")
    assert "simple drawing" in hello(server)
    wait_until(lambda: not followers(server))
    server.send_signal(signal.SIGTERM)
    assert finished(server).code == 0


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_at_any_moment_ends_the_command(seed: int) -> None:
    long = ("--regex", "[a-f ]{1500}", "--max-tokens", "1900")  # which cannot end for seconds
    words = ("chat", "-m", "sketch", "--device", THREE, *long, "--image", str(DATA / "drawing.png"), "Describe it.")
    process = start(*words)
    wait_until(lambda: len(followers(process)) == 2)
    ranks = followers(process)
    time.sleep(random.Random(seed).uniform(0, 1.5))
    chosen = ranks[seed % 2]
    chosen.kill()
    result = finished(process)
    assert result.code == 1
    assert result.error_lines[0].startswith("mllama: The process of rank")
    assert len(result.error_lines) == 2
    wait_until(lambda: not any(rank.is_running() for rank in ranks))


def test_ranks_end_with_a_command_that_is_killed() -> None:
    process = start("chat", "-m", "sketch", "--device", THREE, "Hello")
    wait_until(lambda: len(followers(process)) == 2)
    ranks = followers(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(rank.is_running() for rank in ranks))


def test_a_number_of_devices_that_does_not_divide_the_heads() -> None:
    result = run_here("chat", "-m", "sketch", "--device", "cpu,cpu", "Hello", stdin=b"")
    assert (result.code, result.out) == (2, "")
    assert result.error_lines == [
        "mllama: This model cannot be cut over 2 devices: they do not divide its 3 key/value heads",
        "Use one device.",
    ]


@pytest.mark.parametrize("device", ["cpu,cuda:0", "cuda:0,cuda:0", "cpu,", "cuda:all,cpu"])
def test_lists_that_are_no_devices(device: str) -> None:
    result = run_here("chat", "-m", "sketch", "--device", device, "Hello", stdin=b"")
    assert (result.code, result.out) == (2, "")
    assert len(result.error_lines) in (1, 2)


@pytest.mark.slow
def test_processes_of_torchrun() -> None:
    torchrun = SCRIPT.with_name("torchrun")
    command = [str(torchrun), "--nproc-per-node", "3", "-m", "mllama_cli", "chat", "-m", "sketch", "Hello"]
    done = subprocess.run(command, input=b"", capture_output=True, env={**os.environ, **ENV}, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "simple drawing" in done.stdout.decode()
