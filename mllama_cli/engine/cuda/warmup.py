"""Warm up one decoder layer on zeros while weights load.

Importing Triton and loading libraries and prefill kernels then overlap with reading (0.7 s on an H200's host).
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
    """Run a layer in the background of the block, in 80 MB of memory, so that the first prompt waits only for weights.

    Errors are ignored; they recur, and are reported, where the same work is needed.
    """
    layers = network.language_model.layers
    layer = next((one for one in layers if isinstance(one, MllamaSelfAttentionDecoderLayer)), None)
    if layer is None or not all(parameter.is_meta for parameter in layer.parameters()):
        yield
        return
    # Copied now, since loading replaces the network's own parameters meanwhile.
    attention, norm = copy.deepcopy(layer.self_attn), copy.deepcopy(layer.input_layernorm)
    frequencies = network.language_model.frequencies(torch.device("cpu"))

    def run() -> None:
        try:
            make_current(device)
            _allocate(attention, dtype, device)
            _allocate(norm, dtype, device)
            with torch.inference_mode():
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
    """Give a module on the meta device memory: numbers of any value in ``dtype``, integers in their own dtype.

    ``Module.to_empty`` would import sympy, half a second in which weights are hardly read.
    """
    tensors = {
        name: torch.empty(each.shape, dtype=dtype if each.is_floating_point() else each.dtype, device=device)
        for name, each in module.state_dict().items()
    }
    module.load_state_dict(tensors, assign=True)
