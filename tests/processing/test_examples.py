"""The worked examples in docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["canvas", "color", "image_processor", "sniff"])
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"mllama_cli.processing.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
