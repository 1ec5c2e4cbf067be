"""A home of its own for each test of `mllama caption`, and a folder of pictures."""

import shutil
from pathlib import Path

import pytest

from tests.cli.caption.folders import DATA


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    for name in ("MLLAMA_HOME", "XDG_STATE_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(home / name))
    monkeypatch.setenv("MLLAMA_MODEL", "sketch")
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two drawings, one of them twice, and a file that is not a picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(DATA / "drawing.png", folder / "drawing.png")
    shutil.copy(DATA / "drawing.png", folder / "drawing 2.png")
    shutil.copy(DATA / "card.png", folder / "card.png")
    (folder / "bad.jpg").write_text("no picture")
    return folder
