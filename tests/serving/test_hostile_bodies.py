"""Bodies that are malformed, too large, half sent or slow: an error each, flat memory, and a server that answers."""

import json
import os
import random
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import httpx
import psutil
import pytest

from mllama_cli.engine.engine import load
from mllama_cli.serving.settings import ServerSettings
from tests.serving.running import Server, image_base64, serving, wait_until

PATHS = ("/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate", "/api/show")
LIMIT = 300_000
"""Bytes of a body that this server takes."""


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """Return a server with small limits."""
    engine = load("sketch", device="cpu", dtype="float32", vision=True)
    with serving(engine, ServerSettings(max_body=LIMIT, body_seconds=1, max_context=256, grace=0)) as running:
        yield running


def nasty_value(dice: random.Random, depth: int = 3) -> Any:
    """Return JSON of a kind that programs forget."""
    if depth and dice.random() < 0.3:
        return [nasty_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    if depth and dice.random() < 0.4:
        return {dice.choice(("role", "content", "type", "url", "")): nasty_value(dice, depth - 1) for _ in range(3)}
    return dice.choice(
        (None, True, -1, 0, 10**400, 1e308, float("nan"), float("-inf"), "", "\ud800", "\0", "user", "text", "🦙" * 50,
         "data:image/png;base64,", "file:///etc/passwd", "<|image|>" * 9, "../" * 20)
    )  # fmt: skip


def nasty_body(number: int) -> bytes:
    """Return a body: broken JSON, valid JSON with wrong types, or damaged images."""
    dice = random.Random(number)
    good: dict[str, Any] = {
        "model": "sketch", "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "stream": False,
        "max_tokens": 2, "options": {"num_predict": 2}, "images": [], "stop": ["x"], "seed": 1, "n": 1,
        "temperature": 0.5, "logit_bias": {"1": 1}, "context": [1], "system": "", "keep_alive": "5m",
    }  # fmt: skip
    kind = number % 5
    if kind == 0:
        text = json.dumps(good)
        return text[: dice.randrange(len(text))].encode()
    if kind == 1:
        return dice.randbytes(dice.randrange(1, 5000))
    if kind == 2:
        depth = dice.choice((50, 5000, 100_000))
        return b'{"model": "sketch", "messages": ' + b"[" * depth + b"]" * depth + b"}"
    if kind == 3:
        image = bytearray(image_base64("drawing.png").encode())
        for _ in range(30):
            image[dice.randrange(len(image))] = dice.randrange(256)
        good["images"] = [image.decode("latin-1")]
        good["messages"][0]["images"] = good["images"]
        return json.dumps(good).encode()
    for key in dice.sample(sorted(set(good) - {"stream"}), dice.randrange(1, 4)):
        good[key] = nasty_value(dice)
    return json.dumps(good).encode()


def answers(server: Server) -> bool:
    return server.post("/api/generate", {"model": "sketch", "prompt": "Hi", "stream": False}).status_code == 200


@pytest.mark.slow
def test_1000_bad_bodies_leave_memory_flat_and_the_server_answering(small: Server) -> None:
    process = psutil.Process(os.getpid())
    grown_from = 0
    with httpx.Client(base_url=small.url, timeout=60) as client:
        for number in range(1000):
            answer = client.post(PATHS[number // 5 % len(PATHS)], content=nasty_body(number))
            assert answer.status_code < 500, (number, answer.status_code, answer.text)
            assert "Traceback" not in answer.text
            if number == 300:
                grown_from = process.memory_info().rss
    assert process.memory_info().rss - grown_from < 30_000_000
    assert answers(small)
    wait_until(small.idle)


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_says_it_is_too_large_is_refused_unread(small: Server, path: str) -> None:
    with small.connect() as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**12}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_large_body_may_come_after_its_head(small: Server) -> None:
    body = json.dumps({"model": "sketch", "prompt": "Hi", "stream": False, "ignored": "x" * 200_000}).encode()
    with small.connect() as client:
        for _ in range(3):  # on a connection that is kept
            client.sendall(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            time.sleep(0.05)
            client.sendall(body)
            answer = HTTPResponse(client)
            answer.begin()
            assert (answer.status, bool(answer.read())) == (200, True)


def test_a_body_of_chunks_is_refused_when_it_becomes_too_large(small: Server) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100 * LIMIT:
            sent += 10_000
            yield b"x" * 10_000

    try:
        answer = httpx.post(f"{small.url}/api/chat", content=chunks(), timeout=60)
        assert answer.status_code == 413
        assert list(answer.json()) == ["error"]
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pass  # the server closed the connection while we were writing
    assert sent < 50 * LIMIT
    assert answers(small)


def test_a_body_that_never_comes_ends_in_a_timeout(small: Server) -> None:
    with small.connect() as client:
        client.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"mod')
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_drops_do_not_keep_a_body_going(small: Server) -> None:
    with small.connect() as client:
        client.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        client.setblocking(False)
        answer, end = b"", time.monotonic() + 60
        while not answer:
            assert time.monotonic() < end
            time.sleep(0.1)
            try:
                client.send(b" ")
                answer = client.recv(1000)
            except BlockingIOError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_half_sent_and_garbled_requests_harm_nobody(small: Server) -> None:
    for request in (b"", b"\r\n\r\n", b"GET", b"POST / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00", b"A" * 100_000,
                    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
                    b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                    b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
                    b"GET /%ff%00%0a HTTP/1.1\r\nHost: localhost\r\n\r\n"):  # fmt: skip
        with small.connect() as client:
            try:
                client.sendall(request)
                client.settimeout(0.2)
                client.recv(1000)
            except OSError:
                pass
    assert answers(small)
    wait_until(small.idle)
