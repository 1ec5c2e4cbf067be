"""A small client that times each token of a streamed chat completion, over plain sockets so that it costs little."""

import asyncio
import base64
import io
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

Message = dict[str, Any]


@dataclass
class Timed:
    """One answer. ``times`` has when each token came, in seconds after the request was sent."""

    times: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def gaps(self) -> list[float]:
        """Return the seconds between tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def rate(self) -> float:
        """Return the tokens after the first over their time."""
        seconds = self.times[-1] - self.times[0]
        return (self.completion_tokens - 1) / seconds if seconds > 0 else 0.0


class Client:
    """Ask a server, each question on a connection of its own."""

    def __init__(self, url: str, model: str) -> None:
        address = urlsplit(url)
        self.host, self.port, self.model = address.hostname or "127.0.0.1", address.port or 80, model

    async def ask(self, messages: Sequence[Message], max_tokens: int) -> Timed:
        """Return the timed answer. Raise RuntimeError with the server's words if it refuses."""
        request = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(request).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        begun = time.perf_counter()
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**20)
        try:
            writer.write(head.encode() + body)
            status = await reader.readline()
            while (await reader.readline()).strip():
                pass
            if status.split()[1:2] != [b"200"]:
                raise RuntimeError(f"{status.decode().strip()}: {(await reader.read()).decode()[:500]}")
            return await _answer(reader, begun)
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader, begun: float) -> Timed:
    """Read server-sent events in HTTP chunks."""
    answer, rest = Timed(), b""
    while size := int(await reader.readline(), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        now = time.perf_counter() - begun
        *events, rest = rest.split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                if piece := choice["delta"].get("content"):
                    answer.text += piece
                    answer.times.append(now)
            if usage := chunk.get("usage"):
                answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if not answer.times:
        raise RuntimeError("an answer without text: nothing to time")
    return answer


def question(text: str, image: str | None = None) -> list[Message]:
    """Return the messages of a first turn; ``image`` is a data URL."""
    if image is None:
        return [{"role": "user", "content": text}]
    picture = {"type": "image_url", "image_url": {"url": image}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


def image_url(seed: int, side: int = 1120) -> str:
    """Return a JPEG of coloured noise, which fills four tiles of 560 pixels, as a data URL; each seed has its own."""
    small = Image.frombytes("RGB", (70, 70), random.Random(seed).randbytes(70 * 70 * 3))
    file = io.BytesIO()
    small.resize((side, side)).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
