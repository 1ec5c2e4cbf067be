"""Servers that a load generator starts and ends: ours, and `transformers serve`."""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

START_SECONDS = 300.0


@contextmanager
def our_server(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the address of a server that ends with the block, and what was benchmarked in its process."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        if given.random:
            words = ["tests.benchmarks.random_server", given.random, "--figures", str(figures)]
            words += ["--quantize", given.quantize] if given.quantize else []
        else:
            words = ["mllama_cli", "serve", "-m", given.model]
        words += ["--device", given.device, *(["--slots", str(given.slots)] if given.slots else [])]
        with _started([sys.executable, "-m", *words]) as url:
            yield url, json.loads(figures.read_text()) if figures.exists() else {}


@contextmanager
def transformers_server(folder: str, device: str) -> Iterator[str]:
    """Yield the address of `transformers serve` with a checkpoint; it answers one request after the other.

    Needs transformers' extra `serving`.
    """
    run = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; sys.exit(main())"
    with _started([sys.executable, "-c", run, "serve", folder, "--host", "127.0.0.1", "--device", device]) as url:
        yield url


@contextmanager
def _started(command: Sequence[str]) -> Iterator[str]:
    """Run a server's command with a free port; yield its address when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = subprocess.Popen([*command, "--port", port], stdout=sys.stderr)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, server)
        yield url
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < end and server.poll() is None:
            try:
                if client.get(f"{url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise SystemExit("the server did not start")
