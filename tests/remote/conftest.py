"""A folder of sockets for each test, whose engines end with it."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllama_cli.remote import stop as stopping
from mllama_cli.remote.engines import EngineKey, running
from mllama_cli.system.paths import built_in_model

collect_ignore_glob = ["test_*"] if sys.platform == "win32" else []


@pytest.fixture(autouse=True)
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder that engines of this test listen in; pytest's own are too deep for a socket's path."""
    runtime = Path(tempfile.mkdtemp(prefix="mllama-", dir="/tmp"))
    for name, folder in (("XDG_RUNTIME_DIR", "run"), ("XDG_STATE_HOME", "state"), ("TMPDIR", "tmp")):
        (runtime / folder).mkdir(mode=0o700)
        monkeypatch.setenv(name, str(runtime / folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield runtime / "run" / "mllama"
    monkeypatch.setattr(stopping, "STOP_SECONDS", 5)
    monkeypatch.setattr(stopping, "KILLED_SECONDS", 5)
    for address in running():
        stopping.stop(address)
    shutil.rmtree(runtime)


@pytest.fixture
def key() -> EngineKey:
    return EngineKey.of(built_in_model(), "cpu", "float32")
