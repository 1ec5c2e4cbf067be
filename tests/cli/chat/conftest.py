"""One tiny model for the tests of `mllama chat`, and a home for each."""

from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.engine.engine import Engine, load
from tests.checkpoints import make_checkpoint

NEVER = 10**6
"""An id that no model generates: answers run to --max-tokens."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one model, answers of which are printable noise."""
    home = tmp_path_factory.mktemp("home")
    make_checkpoint(home / "models" / "tiny", seed=3, generation={"eos_token_id": [NEVER]})
    return home


@pytest.fixture(autouse=True)
def _own_home(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(models))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.delenv("MLLAMA_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def engine(models: Path) -> Engine:
    return load(models / "models" / "tiny", device="cpu", vision=True)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((90, 50)).save(path)
    return path
