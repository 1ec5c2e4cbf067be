"""`mllama serve` as a process: what it says, its sockets, its signals."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.running import image_part, read_metrics, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and sockets of Unix")


@dataclass
class Served:
    """A running `mllama serve`; ``lines`` are those on stderr so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return next(re.findall(r" on (http://\S+)", line)[0] for line in self.lines if " on http" in line)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def served(*options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "mllama_cli", "serve", "-m", "sketch", "--device", "cpu", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    running = Served(process)
    assert process.stderr is not None
    reader = threading.Thread(target=lambda stream: running.lines.extend(stream), args=(process.stderr,))
    reader.start()
    try:
        wait_until(lambda: any("Serving " in line for line in running.lines) or process.poll() is not None)
        yield running
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mllama_cli", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def body(tokens: int, **more: Any) -> dict[str, Any]:
    """Return a request whose answer is ``tokens`` long: the built-in model may not end it."""
    from mllama_cli.hub.catalog import built_in
    from mllama_cli.system.json_file import read_json

    ids = read_json(built_in().path / "generation_config.json")["eos_token_id"]
    bias = {str(id_): -100 for id_ in (ids if isinstance(ids, list) else [ids])}
    question = [{"role": "user", "content": "Hello"}]
    return {"model": "sketch", "messages": question, "max_tokens": tokens, "logit_bias": bias, **more}


@pytest.mark.slow
def test_a_server_from_its_first_line_to_sigterm_during_an_answer() -> None:
    with served("--port", "0", "--verbose") as server:
        wait_until(lambda: any("ollama run" in line for line in server.lines))
        assert any("OPENAI_BASE_URL=" in line for line in server.lines)
        address = server.url
        (curl,) = [line for line in server.lines if "curl " in line]
        pasted = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=60)
        assert json.loads(pasted.stdout)["choices"][0]["message"]["content"]
        assert httpx.get(f"{address}/health").status_code == 200
        with socket.create_connection(httpx.URL(address).netloc.decode().split(":")) as slow_head:
            taken = run("--port", str(httpx.URL(address).port))
            assert taken.returncode == 1
            assert f"(process {server.process.pid})" in taken.stderr
            assert "--port" in taken.stderr
            slow_head.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000)
            assert b" 431 " in slow_head.recv(1000)
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body(300, stream=True), timeout=60) as answer:
            events = answer.iter_lines()
            next(events)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in events if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(60) == 0
        assert any("POST /v1/chat/completions 200" in line for line in server.lines)
        assert not any("Traceback" in line for line in server.lines)


@pytest.mark.slow
def test_sigterm_under_load_loses_no_running_answer() -> None:
    with served("--port", "0", "--slots", "4", "--grace", "5m") as server, httpx.Client(timeout=290) as client:
        url = f"{server.url}/v1/chat/completions"

        def ask(number: int) -> tuple[int, str]:
            with client.stream("POST", url, json=body(1500 + number, stream=True)) as answer:
                return answer.status_code, answer.read().decode()

        def all_are_there() -> bool:
            now = read_metrics(client.get(f"{server.url}/metrics").text)
            return (now["mllama:num_requests_running"], now["mllama:num_requests_waiting"]) == (4, 8)

        with ThreadPoolExecutor(12) as threads:
            asked = [threads.submit(ask, number) for number in range(12)]
            wait_until(all_are_there)  # one that has not arrived when the server stops listening gets no answer
            server.process.send_signal(signal.SIGTERM)
            answers = [each.result() for each in asked]
        assert server.process.wait(60) == 0
    assert sorted(status for status, _ in answers) == [200] * 4 + [503] * 8
    for status, text in answers:
        if status == 200:
            assert text.endswith("data: [DONE]\n\n")
            assert '"finish_reason":"length"' in text


@pytest.mark.slow
def test_ctrl_c_ends_the_queue_at_once_and_a_second_one_the_answer() -> None:
    with served("--port", "0", "--slots", "1") as server:
        url = f"{server.url}/v1/chat/completions"
        statuses: list[int] = []

        def wait_in_queue() -> None:
            statuses.append(httpx.post(url, json=body(5), timeout=60).status_code)

        with httpx.stream("POST", url, json=body(100_000, stream=True), timeout=60) as answer:
            events = answer.iter_lines()
            next(events)
            queued = threading.Thread(target=wait_in_queue)
            queued.start()
            wait_until(lambda: "num_requests_waiting{" in (page := httpx.get(f"{server.url}/metrics").text)
                       and re.search(r"num_requests_waiting\{.*\} 1", page))  # fmt: skip
            server.process.send_signal(signal.SIGINT)
            queued.join()
            assert statuses == [503]
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGINT)
            rest = [line for line in events if line.startswith("data: ")]
        assert "shut down" in rest[-2]
        assert server.process.wait(60) == 130


@pytest.mark.slow
def test_a_socket_file_is_the_users_own_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))  # the file that a killed server leaves
    with served("--uds", str(path)) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.name") as client:
            assert client.get("/health").json()["status"] == "ok"
        second = run("--uds", str(path))
        assert (second.returncode, "answers on" in second.stderr) == (1, True)
        assert server.end() == 0
    assert not path.exists()


@pytest.mark.slow
def test_images_are_kept_in_8_bits() -> None:
    question = {"role": "user", "content": [image_part("drawing.png"), {"type": "text", "text": "How many circles?"}]}
    with served("--port", "0", "--image-kv", "fp8") as server:
        asked = {"model": "sketch", "messages": [question], "temperature": 0}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60).json()
    assert "3" in reply["choices"][0]["message"]["content"]


def test_wrong_options_are_said_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "file").write_text("kept")
    for options, words in (
        (("--grace", "soon"), "--grace must be a time"),
        (("--slots", "many"), "--slots must be auto or a number"),
        (("--image-kv", "int8"), "Unknown format of image keys and values 'int8'"),
        (("--api-key", ""), "API key is empty"),
        (("--api-key-file", str(tmp_path / "empty")), "API key is empty"),
        (("--api-key", "a", "--api-key-file", str(tmp_path / "file")), "mutually exclusive"),
        (("--uds", str(tmp_path / "file")), "is not a socket"),
        (("--uds", str(tmp_path / "no" / "file")), "No such file"),
        (("--host", "203.0.113.1", "--port", "0"), "not an address of this machine"),
    ):
        result = run(*options)
        assert (result.returncode, words in result.stderr) == (2, True), (options, result.stderr)
    assert (tmp_path / "file").read_text() == "kept"
