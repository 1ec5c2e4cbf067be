"""The matrices, plain or packed, that decode kernels read, and whether they can read them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mllama_cli.engine.forward import Network
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.kernels.sdpa import supports_decode_attention
from mllama_cli.model.text import MllamaCrossAttentionDecoderLayer, MllamaSelfAttentionDecoderLayer

Operand = Tensor | PackedWeight


def operand(module: nn.Module) -> Operand:
    """Return the matrix of a linear layer, packed if it is quantized."""
    packed = getattr(module, "packed", None)
    if isinstance(packed, PackedWeight):
        return packed
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def groups(network: Network) -> Iterator[list[nn.Module]]:
    """Yield the linear layers that one kernel reads together, in order of execution."""
    for layer in network.language_model.layers:
        if isinstance(layer, MllamaCrossAttentionDecoderLayer):
            yield [layer.cross_attn.q_proj]
            yield [layer.cross_attn.o_proj]
        else:
            assert isinstance(layer, MllamaSelfAttentionDecoderLayer)
            yield [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
            yield [layer.self_attn.o_proj]
        yield [layer.mlp.gate_proj, layer.mlp.up_proj]
        yield [layer.mlp.down_proj]
    yield [network.lm_head]


def same_format(operands: Sequence[Operand]) -> bool:
    """Return whether all are plain, or all are packed with the same bits, group size and code."""
    first = operands[0]
    if isinstance(first, Tensor):
        return all(isinstance(other, Tensor) for other in operands)
    form = (first.bits, first.group_size, first.code)
    return all(
        isinstance(other, PackedWeight) and (other.bits, other.group_size, other.code) == form for other in operands
    )


def unsupported_reason(network: Network, dtype: torch.dtype, device: torch.device) -> str:
    """Return why the decode kernels cannot run this network here; empty if they can."""
    if device.type != "cuda":
        return "no CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "kernels need compute capability 8.0"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    from mllama_cli.kernels.cuda.gemv_api import supports

    dim = network.language_model.config.head_dim
    if not supports_decode_attention(dtype, dim):
        return f"no kernels for head dimension {dim}"
    for modules in groups(network):
        operands = [operand(module) for module in modules if not module_is_absent(module)]
        if operands and not (same_format(operands) and all(supports(one) for one in operands)):
            return "no kernels for this mixture of quantized layers"
    return ""


def module_is_absent(module: nn.Module) -> bool:
    """Return whether the layer is not loaded yet, as cross-attention layers before the first image."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
