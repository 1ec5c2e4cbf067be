"""Run a real server on 127.0.0.1 in a thread of the tests."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from mllama_cli.engine.engine import Engine
from mllama_cli.serving.app import create_app
from mllama_cli.serving.protocol import LimitedProtocol
from mllama_cli.serving.service import Service
from mllama_cli.serving.settings import ServerSettings
from mllama_cli.serving.sockets import bind

DATA = Path(__file__).parents[1] / "data"
END_SECONDS = 30.0
"""Far longer than a server without grace needs to end."""
HOT = 3
"""A temperature at which the built-in model, which is sure of itself, gives another answer for each seed."""


@dataclass(frozen=True)
class Server:
    """A running server. ``endless`` biases an answer against ending before its length limit."""

    port: int
    engine: Engine
    client: httpx.Client
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def endless(self) -> dict[str, float]:
        return {str(id_): -100 for id_ in self.engine.model.eos}

    def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def metrics(self) -> dict[str, float]:
        return read_metrics(self.client.get("/metrics").text)

    def idle(self) -> bool:
        now = self.metrics()
        return not (now["mllama:slots_busy"] or now["mllama:num_requests_waiting"])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)


def read_metrics(page: str) -> dict[str, float]:
    """Return each sample's value by its name, followed by the values of its labels other than the model."""
    samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = [value for name, value in sample.labels.items() if name != "model_name"]
            samples[" ".join([sample.name, *labels])] = sample.value
    return samples


def still_open(server: uvicorn.Server) -> str:
    """Say what keeps a server from ending."""
    state = server.server_state
    requests = [f"{task.get_coro()}" for task in state.tasks]
    return f"the server runs on after {END_SECONDS} s: {len(state.connections)} connections, requests {requests}"


@contextmanager
def serving(engine: Engine, settings: ServerSettings | None = None) -> Iterator[Server]:
    """Yield a server that answers with ``engine``, which no other server may use meanwhile."""
    app = create_app(engine, settings or ServerSettings(grace=0))
    with bind("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, log_level="error", http=LimitedProtocol, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            port = listener.getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield Server(port, engine, client, app.state.service)
        finally:
            server.should_exit = True
            thread.join(END_SECONDS)
            assert not thread.is_alive(), still_open(server)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return when the condition holds; fail if it does not within a time that is far longer than needed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def image_base64(name: str) -> str:
    return base64.b64encode((DATA / name).read_bytes()).decode()


def image_part(name: str) -> dict[str, Any]:
    """Return OpenAI's message part for an image of tests/data."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image_base64(name)}"}}
