"""Torch's libraries, loaded before torch is imported."""

import subprocess
import sys

import pytest
import torch

from mllama_cli.system.torch_libraries import load_libraries


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries of Linux")
def test_torch_finds_its_libraries_loaded() -> None:
    code = (
        "from pathlib import Path\n"
        "from mllama_cli.system.torch_libraries import LIBRARIES, load_libraries\n"
        "load_libraries().join()\n"
        "mapped = Path('/proc/self/maps').read_text()\n"
        "print(all(name in mapped for name in (*LIBRARIES, 'libtorch_cpu.so')))\n"
        "import torch\n"
        "print(torch.arange(3).sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n3\n"


def test_nothing_is_loaded_where_torch_is_imported() -> None:
    assert torch.__name__ in sys.modules
    assert load_libraries() is None
