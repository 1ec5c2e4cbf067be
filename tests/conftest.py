"""Fixtures for all tests."""

import gc
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.prepared import IMPORTED, Launcher, prepared_processes

if "PYTEST_XDIST_WORKER" in os.environ:
    # There are as many workers as cores: with several threads each they would be thirty times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has it ignored, also in the commands that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("tests", deadline=None)  # machines differ; a first call may load a tokenizer
settings.load_profile("tests")

ROOT = Path(__file__).parents[1]
_tests = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "seconds for which each test of tests/fuzz tries random inputs; by default 0.25, always the same ones"
    parser.addoption("--fuzz-seconds", type=float, default=None, help=help_text)


def pytest_collection_finish() -> None:
    """Leave all modules to themselves: looking through them takes a second of each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder for sockets and other processes' temporary files, with a short path since a socket's is limited.

    Without folders that exist, engines listen in /tmp, where commands of other tests and of the user find them.
    """
    tmp_path_factory.getbasetemp()  # which is to stay where it is
    folder = Path(tempfile.mkdtemp(prefix="m", dir="/tmp" if os.name == "posix" else None))
    (folder / "run").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_settings(_runtime: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings, the line history, the running engines and ollama's models of the user who runs the tests."""
    folder = tmp_path_factory.getbasetemp() / "nobody"
    monkeypatch.setenv("MLLAMA_CONFIG", str(folder / "config.toml"))
    monkeypatch.setenv("MLLAMA_NOHISTORY", "1")
    state = folder / "state" / "mllama"
    state.mkdir(parents=True, exist_ok=True)
    (state / "cold-start-said").touch()  # else one of the tests, whichever comes second, has a line more
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    run = _runtime / str(next(_tests))  # of each test, since an engine of the one before may still be ending
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    monkeypatch.setenv("OLLAMA_MODELS", str(folder / "ollama"))
    for name in ("MODEL", "HOST", "API_KEY", "KEEP_ALIVE", "NO_SERVER"):
        monkeypatch.delenv(f"MLLAMA_{name}", raising=False)


@pytest.fixture(autouse=True, scope="module")
def _strict_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forbid silent fallbacks to torch where GPU kernels are tested."""
    with pytest.MonkeyPatch.context() as patches:
        if request.path.parent.name in ("gpu", "cuda"):
            patches.setenv("MLLAMA_STRICT_KERNELS", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def _prepared() -> Iterator[None]:
    """Start our own programs with their imports done already."""
    with prepared_processes(*map(Launcher, IMPORTED)):
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of files that may not be copied into this repository; skip the test if it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "photos").is_dir():
        pytest.skip(f"{folder} is absent: it holds photos and a tokenizer whose licences are not ours")
    return folder
