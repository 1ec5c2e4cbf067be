"""The vocabulary, made once for all processes of a test run, since it takes seconds."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from mllama_cli.sketch.training.vocabulary import write_vocabulary


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a read-only folder with the tokenizer and the chat template."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "vocabulary"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            write_vocabulary(folder.with_suffix(".partial"))
            folder.with_suffix(".partial").rename(folder)
    return folder
