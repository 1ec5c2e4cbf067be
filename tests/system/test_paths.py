"""The user's folders."""

import sys
from pathlib import Path

import pytest

from mllama_cli.hub.catalog import models_folder
from mllama_cli.system.paths import config_folder, data_folder, state_folder


def test_mllama_home_is_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path))
    assert data_folder() == tmp_path
    assert models_folder() == tmp_path / "models"


def test_a_tilde_in_mllama_home_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", "~/mine")
    assert data_folder() == Path.home() / "mine"
    monkeypatch.setenv("MLLAMA_HOME", "~nobody-of-this-name/mine")
    assert data_folder() == Path("~nobody-of-this-name/mine")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no variables for these places")
def test_without_it_each_kind_has_the_place_that_the_system_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLLAMA_HOME", raising=False)
    for kind in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    assert data_folder() == tmp_path / "DATA" / "mllama"
    assert config_folder() == tmp_path / "CONFIG" / "mllama"
    assert state_folder() == tmp_path / "STATE" / "mllama"
