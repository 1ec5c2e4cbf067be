"""The matrices, plain or packed, that decode kernels read, and whether they can read them."""

from collections.abc import Iterator

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
    """Yield the linear layers that one kernel reads together if their formats are the same, in order of execution."""
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


def format_of(matrix: Operand) -> tuple[int, int, str] | None:
    """Return bits, group size and code, which all matrices of one kernel share; None for a plain one."""
    return None if isinstance(matrix, Tensor) else (matrix.bits, matrix.group_size, matrix.code)


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
        for matrix in (operand(module) for module in modules if not module_is_absent(module)):
            if not supports(matrix):
                groups_of = "" if isinstance(matrix, Tensor) else f" with groups of {matrix.group_size}"
                return f"no kernels for matrices of shape {list(matrix.shape)}{groups_of}"
    return ""


def module_is_absent(module: nn.Module) -> bool:
    """Return whether the layer is not loaded yet, as cross-attention layers before the first image."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
