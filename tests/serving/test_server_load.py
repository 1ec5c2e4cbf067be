"""The load generator of tests/benchmarks, with a tiny server: it runs from the tree alone and prints one object."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_measures_every_scenario() -> None:
    options = ["--random", "tiny", "--device", "cpu", "--json", "--clients", "2", "3", "--rounds", "1", "--firsts", "2"]
    lengths = ["--tokens", "4", "--alone-tokens", "16", "--long", "600"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.server_load", *options, *lengths],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    rows = record["rows"]
    assert [rows[name]["answers"] for name in ("alone", "alone, text", "2 clients", "3 clients")] == [1, 2, 2, 3]
    assert rows["10 questions about one image at once"]["answers"] == 10
    assert rows["2 clients while prompts of 600 tokens arrive"]["long_prompt_tokens"] >= 600
    assert record["bench"]["decode, after an image"] > 0
    images = 2 + 1 + 2 + 2 + 2 * (2 + 3) + 2
    assert record["metrics"]["images_encoded_total"] == images, "each once"
