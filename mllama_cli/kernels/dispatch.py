"""Which implementation of a product runs: by device, by gradient, by precision."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.core.errors import CheckpointError
from mllama_cli.kernels import packed as reference
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.kernels.rows import fused

_HALVES = (torch.bfloat16, torch.float16)
_exact = False


def set_exact(on: bool) -> None:
    """Whether activations keep their precision; else (the default) they may be rounded to 8 bits where that is faster.

    For the whole process. On a CPU the loss per product is about 0.5 % of the result's norm.
    """
    global _exact
    _exact = on


def is_exact() -> bool:
    """What ``set_exact`` was told last."""
    return _exact


def prepare(device: torch.device) -> None:
    """Do now what the first product on this device would have to: compile the kernels, once for each machine."""
    if device.type == "cpu":
        from mllama_cli.kernels.cpu.native import native

        native()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times the transposed matrix [out, in], plus bias [out] -> [..., out], in x's dtype.

    Where matrix and x have the same format this is ``F.linear``, but for bfloat16 and float16 on a CPU, which computes
    in float32 without ever holding the whole matrix in it.
    """
    if weight.device.type != "cpu" or weight.dtype not in _HALVES or _differentiated(x, weight):
        return F.linear(x, weight, bias)
    _check_columns(x, weight.shape[1])
    from mllama_cli.kernels.cpu.linear import dense

    out = dense(x, weight, exact=_exact)
    return out if bias is None else out + bias.to(out.dtype)


def quantized_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """x [..., in] times the transposed packed matrix -> [..., out], in x's dtype.

    Raises CheckpointError where the matrix's tensors do not fit its shape.
    """
    check(weight)
    _check_columns(x, weight.shape[1])
    if x.device.type == "cpu" and not _differentiated(x):
        from mllama_cli.kernels.cpu.linear import quantized

        return quantized(x, weight, exact=_exact)
    if fused(x):
        from mllama_cli.kernels.cuda import dequantize as packed

        return packed.quantized_linear(x, weight)
    return reference.quantized_linear(x, weight)


def check(weight: PackedWeight) -> None:
    """Raise CheckpointError unless a packed matrix's tensors are what its shape asks for: kernels trust these sizes."""
    if weight.problem:
        raise CheckpointError(
            f"A quantized matrix is damaged: {weight.problem}", "Download or quantize the model again."
        )


def _check_columns(x: Tensor, columns: int) -> None:
    if x.shape[-1] != columns:
        raise ValueError(f"x has {x.shape[-1]} columns, the matrix {columns}")


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
