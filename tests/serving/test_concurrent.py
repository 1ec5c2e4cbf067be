"""Many clients at once: each gets the text that it gets alone."""

import asyncio
import socket
from typing import Any

import httpx

from mllama_cli.serving.sockets import bind
from tests.serving.running import HOT, Server, image_base64, image_part, read_metrics, wait_until

QUESTIONS = ("Who are you?", "Hello!", "What can you do?", "Thank you!")
ABOUT = ("Which colour does the star have?", "How many circles are there?", "Describe this picture.")


def mixed(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Return requests of both dialects: text and images, greedy and sampled, short and long, streamed or not."""
    requests: list[tuple[str, dict[str, Any]]] = []
    for number in range(count):
        sampling = {"temperature": number % 3 / 2 * HOT, "seed": number}
        text = ABOUT[number % 3] if number % 2 else QUESTIONS[number % 4]
        if number % 4 < 2:
            content: Any = [image_part("drawing.png"), {"type": "text", "text": text}] if number % 2 else text
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3 + number % 8, **sampling}
            requests.append(("/v1/chat/completions", {"model": "sketch", **body}))
        else:
            images = [image_base64("drawing.png")] if number % 2 else []
            options = {"num_predict": 3 + number % 8, **sampling}
            body = {"prompt": text, "images": images, "stream": False, "options": options}
            requests.append(("/api/generate", {"model": "sketch", **body}))
    return requests


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    text: str = body["response"] if "response" in body else body["choices"][0]["message"]["content"]
    return text


def test_64_mixed_requests_at_once_give_the_texts_they_give_alone(server: Server) -> None:
    requests = mixed(64)
    alone = [text_of(server.post(path, body)) for path, body in requests]

    async def all_at_once() -> tuple[list[httpx.Response], float]:
        limits = httpx.Limits(max_connections=None)
        most = 0.0
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            answers = asyncio.gather(*(client.post(path, json=body) for path, body in requests))
            while not answers.done():
                page = (await client.get("/metrics")).text
                most = max(most, read_metrics(page)["mllama:num_requests_running"])
                await asyncio.sleep(0.02)
            return await answers, most

    answers, most = asyncio.run(all_at_once())
    assert [text_of(answer) for answer in answers] == alone
    assert len(set(alone)) > 20
    assert most > 1


def test_a_client_that_does_not_read_holds_up_nobody(server: Server) -> None:
    body = b'{"model": "sketch", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
    with server.connect() as unread:
        unread.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        for _ in range(3):
            assert text_of(server.post("/api/generate", {"model": "sketch", "prompt": "Hi", "stream": False}))
    wait_until(server.idle)


def test_small_pieces_of_an_answer_are_sent_at_once() -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # else asyncio does not set TCP_NODELAY: 40 ms a piece
