"""Warming up a layer while weights load: here on the CPU, where all of it runs as well."""

import subprocess
import sys

import pytest
import torch

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.cuda import warmup
from mllama_cli.engine.cuda.warmup import WARM_UP_TOKENS, warmed_up
from mllama_cli.engine.weights.shapes import network_of_shape
from mllama_cli.model.mllama import MllamaForConditionalGeneration, empty_network
from mllama_cli.quantization.linear import QuantizedLinear
from tests.checkpoints import config_dict

CPU = torch.device("cpu")


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_layer_runs_and_the_network_stays_empty(quantize: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(warmup, "silu_and_mul", lambda gate, up: ran.append(gate.shape))
    network = network_of_shape(
        MllamaConfig.from_dict(config_dict(text={"hidden_size": 128, "num_attention_heads": 4})), quantize
    )
    assert isinstance(network, MllamaForConditionalGeneration)
    assert any(isinstance(module, QuantizedLinear) for module in network.modules()) is (quantize is not None)
    with warmed_up(network, torch.float32, CPU):
        pass
    assert ran == [(1, WARM_UP_TOKENS, 128)]
    assert all(parameter.is_meta for parameter in network.parameters())


def test_what_fails_is_left_to_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def fails(gate: torch.Tensor, up: torch.Tensor) -> None:
        ran.append(gate.shape)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(warmup, "silu_and_mul", fails)
    with warmed_up(empty_network(MllamaConfig.from_dict(config_dict())), torch.float32, CPU):
        pass
    assert len(ran) == 1


def test_a_network_with_weights_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "ThreadPool", lambda size: pytest.fail("it needs no warm-up"))
    network = empty_network(MllamaConfig.from_dict(config_dict())).to_empty(device="cpu")
    with warmed_up(network, torch.float32, CPU):
        pass


def test_it_imports_no_compiler() -> None:
    code = """
import sys
import torch
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.cuda import warmup
from mllama_cli.model.mllama import empty_network
from tests.checkpoints import config_dict
ran = []
warmup.silu_and_mul = lambda gate, up: ran.append(gate.shape)
with warmup.warmed_up(empty_network(MllamaConfig.from_dict(config_dict())), torch.float32, torch.device("cpu")):
    pass
print(len(ran), [m for m in ("torch._dynamo", "sympy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 []", "it would hold up the threads that read weights"
