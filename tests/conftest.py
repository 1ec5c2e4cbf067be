"""Fixtures for every room's tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: with threads of their own they would wait for one another, thirty times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("tests", deadline=None)  # machines differ; a first call may load a tokenizer
settings.load_profile("tests")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings or the typed lines of whoever runs it."""
    folder = tmp_path_factory.getbasetemp() / "nobody"
    monkeypatch.setenv("MLLAMA_CONFIG", str(folder / "config.toml"))
    monkeypatch.setenv("MLLAMA_NOHISTORY", "1")
    monkeypatch.delenv("MLLAMA_MODEL", raising=False)


@pytest.fixture(autouse=True, scope="module")
def _strict_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where GPU kernels are tested, none may fall back to torch silently."""
    with pytest.MonkeyPatch.context() as patches:
        if request.path.parent.name in ("gpu", "cuda"):
            patches.setenv("MLLAMA_STRICT_KERNELS", "1")
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of files that may not be copied into this repository; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "photos").is_dir():
        pytest.skip(f"{folder} is absent: it holds photos and a tokenizer whose licences are not ours")
    return folder
