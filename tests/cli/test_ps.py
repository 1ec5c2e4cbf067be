"""`mllama ps` and `mllama stop`, with a server and a background engine that are running."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllama_cli.remote.engines import EngineKey, find
from mllama_cli.remote.start import start
from mllama_cli.system.paths import built_in_model
from tests.console import run_here
from tests.serving.test_serve_command import Served, served

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets"),
    pytest.mark.slow,
]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mllama-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield folder
    run_here("stop", "--all")
    shutil.rmtree(folder)


@pytest.fixture
def server(runtime: Path) -> Iterator[Served]:
    with served("--port", "0", "--api-key", "secret") as running:
        yield running


def test_nothing_runs(runtime: Path) -> None:
    assert run_here("ps").err.startswith("No engine is running.")
    assert json.loads(run_here("ps", "--json").out) == []
    assert run_here("stop").code == 2
    assert "No engine is running" in run_here("stop", "sketch").err
    assert run_here("stop", "--all").code == 0
    assert run_here("stop", "--all", "sketch").code == 2


def test_a_server_is_found_by_commands_of_its_user_without_its_key(server: Served) -> None:
    found = find(EngineKey.of(built_in_model(), "cpu"))
    assert found is not None
    assert not found.info.background
    assert found.info.address == server.url
    (listed,) = json.loads(run_here("ps", "--json").out)
    assert (listed["pid"], listed["started_by"], listed["address"]) == (server.process.pid, "serve", server.url)
    assert listed["idle_left"] is None
    assert listed["memory"] > 0
    assert run_here("stop", "sketch").code == 0
    assert server.process.wait(60) == 0


def test_several_engines_are_listed_and_stopped_together(server: Served, runtime: Path) -> None:
    start("sketch", EngineKey.of(built_in_model(), "cpu", "bfloat16"), 3600)
    lines = run_here("ps").out.splitlines()
    assert lines[0].split()[:4] == ["NAME", "DEVICE", "FORMAT", "MEMORY"]
    assert sorted(line.split()[-2] for line in lines[1:]) == ["keep-alive", "serve"]
    assert any("59m" in line or "1h" in line for line in lines)
    refused = run_here("stop")
    assert refused.code == 2
    assert "2 engines are running" in refused.err
    assert run_here("stop", "11b").code == 2
    assert len(json.loads(run_here("ps", "--json").out)) == 2
    assert run_here("stop", "--all").code == 0
    assert json.loads(run_here("ps", "--json").out) == []
    assert server.process.wait(60) == 0
    assert not list((runtime / "mllama").iterdir())


def test_ps_imports_no_torch(runtime: Path) -> None:
    code = (
        "import sys\nfrom mllama_cli.__main__ import main\nsys.argv = ['mllama', 'ps', '--json']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'tokenizers', 'httpx') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["[]", "[]"]
