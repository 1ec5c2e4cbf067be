"""A decode step of our kernels over several ranks gives the network's logits; on a CPU in Triton's interpreter."""

import subprocess
import sys
from pathlib import Path

from tests.triton_here import DEVICE  # isort: skip  # skips where Triton cannot run

import pytest

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="tests/gpu has the same for several GPUs")


@pytest.mark.slow
def test_a_step_over_two_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.cuda.ranks"]
    ranks = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "meeting")], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [float(rank.communicate(timeout=300)[0]) for rank in ranks]
    assert max(errors) < 1e-5
