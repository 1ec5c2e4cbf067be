"""Warm up one decoder layer on zeros while weights load.

Triton's import and the loading of libraries and prompt kernels then overlap with reading: 0.7 s on an H200's host.
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

WARM_UP_TOKENS = 24


@contextmanager
def warmed_up(network: Network, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Run a layer during the block, so that the first prompt waits for weights alone. Takes 80 MB meanwhile.

    A failure is ignored: it comes back where the same is needed, and is reported there.
    """
    layers = network.language_model.layers
    layer = next((one for one in layers if isinstance(one, MllamaSelfAttentionDecoderLayer)), None)
    if layer is None or not all(parameter.is_meta for parameter in layer.parameters()):
        yield
        return
    # Copied now: while the layer runs, the network's own parameters are replaced.
    attention, norm = copy.deepcopy(layer.self_attn), copy.deepcopy(layer.input_layernorm)
    frequencies = network.language_model.frequencies(torch.device("cpu"))

    def run() -> None:
        try:
            make_current(device)
            with torch.inference_mode():
                _allocate(attention, dtype, device)
                _allocate(norm, dtype, device)
                x = torch.zeros(1, WARM_UP_TOKENS, norm.weight.shape[0], dtype=dtype, device=device)
                positions = torch.arange(WARM_UP_TOKENS, device=device)[None]
                context = SelfAttentionContext(positions, *rotation(positions, frequencies.to(device)), None, None)
                attention(norm(x), 0, context, x)
                silu_and_mul(x, x)
        except Exception:
            return

    with ThreadPool(1) as thread:
        thread.submit(run)
        yield


def _allocate(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Replace parameters on the meta device by zeros."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            kind = dtype if parameter.is_floating_point() else parameter.dtype
            values = torch.zeros(parameter.shape, dtype=kind, device=device)
            part.register_parameter(name, nn.Parameter(values, requires_grad=False))
