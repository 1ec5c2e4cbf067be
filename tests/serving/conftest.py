"""A server with the built-in model, in float32 on the CPU."""

from collections.abc import Iterator

import pytest

from mllama_cli.engine.engine import Engine, load
from tests.serving.running import Server, serving


@pytest.fixture(scope="session")
def sketch() -> Engine:
    return load("sketch", device="cpu", dtype="float32", vision=True)


@pytest.fixture(scope="session")
def server(sketch: Engine) -> Iterator[Server]:
    with serving(sketch) as running:
        yield running
