"""What a process does once before its first prompt: done while weights are still being read, which leaves time for it.

Triton is imported and hashes itself, the kernels of a prompt and the libraries are loaded: 0.7 s on an H200's host.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mllama_cli.engine.device import make_current
from mllama_cli.engine.forward import Network
from mllama_cli.kernels.ops import silu_and_mul
from mllama_cli.model.rope import rotation
from mllama_cli.model.text import MllamaSelfAttentionDecoderLayer, SelfAttentionContext
from mllama_cli.system.interrupts import ThreadPool

ROWS = 24


@contextmanager
def rehearsed(network: Network, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """At the end of the block the first prompt finds all it needs, but for the weights. Takes 80 MB for a moment.

    What goes wrong here goes wrong again where it is needed, and is told there.
    """
    layers = network.language_model.layers
    layer = next((one for one in layers if isinstance(one, MllamaSelfAttentionDecoderLayer)), None)
    if layer is None or not all(parameter.is_meta for parameter in layer.parameters()):
        yield
        return
    # Taken now: while this runs, the network's own parameters come in.
    attention, norm = copy.deepcopy(layer.self_attn), copy.deepcopy(layer.input_layernorm)
    frequencies = network.language_model.frequencies(torch.device("cpu"))

    def rehearse() -> None:
        try:
            make_current(device)
            with torch.inference_mode():
                _allocate(attention, dtype, device)
                _allocate(norm, dtype, device)
                x = torch.zeros(1, ROWS, norm.weight.shape[0], dtype=dtype, device=device)
                positions = torch.arange(ROWS, device=device)[None]
                context = SelfAttentionContext(positions, *rotation(positions, frequencies.to(device)), None, None)
                attention(norm(x), 0, context, x)
                silu_and_mul(x, x)
        except Exception:
            return

    with ThreadPool(1) as thread:
        thread.submit(rehearse)
        yield


def _allocate(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Zeros for parameters on the meta device."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            kind = dtype if parameter.is_floating_point() else parameter.dtype
            values = torch.zeros(parameter.shape, dtype=kind, device=device)
            part.register_parameter(name, nn.Parameter(values, requires_grad=False))
