"""Run the examples in docstrings."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import mllama_cli

PACKAGE = Path(mllama_cli.__file__).parent
MODULES = sorted(
    ".".join(("mllama_cli", *file.relative_to(PACKAGE).with_suffix("").parts))
    for file in PACKAGE.rglob("*.py")
    if re.search(r"^ +>>> ", file.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
