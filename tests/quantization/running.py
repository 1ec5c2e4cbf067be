"""Helpers that quantize a checkpoint and read the result."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mllama_cli.checkpoint.gguf.header import read_gguf
from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.events import Event
from mllama_cli.quantization import quantize as quantize_module
from mllama_cli.quantization.gguf_import import GgufModel, import_plan
from mllama_cli.quantization.journal import JOURNAL_NAME
from mllama_cli.quantization.plan import QuantizePlan, make_plan
from mllama_cli.quantization.policy import QuantizeOptions
from mllama_cli.quantization.quantize import quantize
from mllama_cli.quantization.schemes import Scheme
from tests.checkpoints import config_dict

FOUR = QuantizeOptions(Scheme(4, 128))
RELEASED = config_dict(
    {"num_hidden_layers": 40, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38], "hidden_size": 32,
     "intermediate_size": 64}
)  # fmt: skip


def run(plan: QuantizePlan, folder: Path, **how: Any) -> list[Event]:
    return list(quantize(plan, folder, **how))


def quantize_four(source: str, folder: str) -> None:
    run(make_plan(Path(source), FOUR), Path(folder))


def gguf_plan(file: Path, bits: int = 8) -> QuantizePlan:
    """Return the plan to import a GGUF file."""
    return import_plan(GgufModel((read_gguf(file),)), bits)[0]


def import_gguf(source: str, folder: str) -> None:
    """Import a GGUF file, noting each matrix in the journal as soon as it is finished."""
    quantize_module.SYNC_BYTES = 1
    run(gguf_plan(Path(source)), Path(folder))


def start_writing(function: str, source: Path, folder: Path, errors: Path) -> "subprocess.Popen[bytes]":
    """Run a function of this module in a process whose stderr goes into a file."""
    with errors.open("w") as file:
        return subprocess.Popen([sys.executable, "-m", __name__, function, str(source), str(folder)], stderr=file)


def journal_lines(folder: Path) -> int:
    """Return how many lines the journal of a model that is being written has."""
    try:
        return (folder.with_name(folder.name + ".partial") / JOURNAL_NAME).read_text().count("\n")
    except FileNotFoundError:
        return 0


def kill_until_made(
    function: str, source: Path, made: Path, errors: Path, chance: random.Random, *, first: int, lines: range
) -> int:
    """Start a function of this module and kill it, again and again until its model is there; return how many kills.

    The journal then has ``first`` lines, and for each start some more, a number drawn from ``lines``.
    """
    kills, target = 0, first
    while True:
        target += chance.choice(lines)
        process = start_writing(function, source, made, errors)
        while process.poll() is None and journal_lines(made) < target:
            time.sleep(chance.random() * 0.02)
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), errors.read_text()
        if made.exists():  # maybe it was killed while it ended
            if process.returncode:
                (made / JOURNAL_NAME).unlink(missing_ok=True)
            return kills
        kills += 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {canonical(n): t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


if __name__ == "__main__":
    {"quantize_four": quantize_four, "import_gguf": import_gguf}[sys.argv[1]](*sys.argv[2:])
