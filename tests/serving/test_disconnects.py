"""Clients that leave: no request keeps its slot or its place in the queue."""

import json
import random
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serving.running import Server, image_base64, image_part, wait_until

TEXT = {"role": "user", "content": "Who are you?"}
IMAGE = {"role": "user", "content": [image_part("drawing.png"), {"type": "text", "text": "Describe this picture."}]}


def endless(server: Server, number: int) -> tuple[str, dict[str, Any]]:
    """Return a request whose answer would take a thousand steps or more."""
    stream = number % 3 > 0
    if number % 4 < 3:
        messages = [IMAGE if number % 2 else TEXT]
        body = {"messages": messages, "stream": stream, "max_tokens": 1900, "logit_bias": server.endless}
        return "/v1/chat/completions", {"model": "sketch", **body}
    options = {"num_predict": 1900, "temperature": 80, "top_k": 0, "top_p": 1, "seed": 34}  # 977 tokens
    images = [image_base64("drawing.png")] if number % 8 == 3 else []
    return "/api/generate", {
        "model": "sketch", "prompt": "Hi", "images": images, "stream": stream, "options": options
    }  # fmt: skip


def raw(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def leave(server: Server, number: int) -> None:
    """Send all or a part of a request, wait a while, and close the connection or reset it."""
    dice = random.Random(number)
    request = raw(*endless(server, number))
    with server.connect() as client:
        client.sendall(request if dice.random() < 0.8 else request[: dice.randrange(len(request))])
        time.sleep(dice.choice((0, 0.01, 0.05, 0.2)) * dice.random())
        if dice.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.slow
def test_200_disconnects_at_random_moments_leave_no_slot_busy(server: Server) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: leave(server, number), range(200)))
    wait_until(server.idle)
    assert server.post("/api/generate", {"model": "sketch", "prompt": "Hi", "stream": False}).json()["done"]


@pytest.mark.parametrize("number", [0, 1, 4, 5, 3], ids=["whole", "stream", "stream 2", "image, stream", "ollama"])
def test_leaving_while_the_answer_runs_frees_the_slot(server: Server, number: int) -> None:
    with server.connect() as client:
        client.sendall(raw(*endless(server, number)))
        wait_until(lambda: server.metrics()["mllama:slots_busy"])
    wait_until(server.idle, 20)


def test_leaving_the_queue_frees_the_place(server: Server) -> None:
    before = server.metrics()["mllama:generation_tokens_total"]
    slots = int(server.metrics()["mllama:slots"])
    clients = [server.connect() for _ in range(slots + 3)]
    for client in clients:
        client.sendall(raw(*endless(server, 0)))
    wait_until(lambda: server.metrics()["mllama:num_requests_waiting"] >= 3)
    for client in reversed(clients):
        client.close()
    wait_until(server.idle, 20)
    assert server.metrics()["mllama:generation_tokens_total"] - before < 1900 * len(clients)
