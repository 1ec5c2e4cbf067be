"""A hub on this machine, and someone who downloads from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.download.user import NAME, User, checkpoint_files
from tests.hub_server import Repo, serving


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    cache = tmp_path / "cache"
    with serving({NAME: Repo(checkpoint_files())}) as hub:
        env = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(cache), "HF_TOKEN": "",
            "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*",
            "MLLAMA_HOME": str(tmp_path / "mllama"),
        }  # fmt: skip
        yield User(hub, cache, env)


@pytest.fixture
def here(user: User, monkeypatch: pytest.MonkeyPatch) -> User:
    """The command in this process: for what only a patch can bring about."""
    from huggingface_hub import constants

    for name, value in user.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", user.hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", user.hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", user.hub.url)
    return user
