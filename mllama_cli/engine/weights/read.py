"""Read stored tensors, on a GPU straight to the device."""

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mllama_cli.checkpoint.header import TensorInfo
from mllama_cli.checkpoint.reader import CheckpointReader, torch_dtype
from mllama_cli.engine.weights.offload import OffloadPlan
from mllama_cli.quantization.schemes import Scheme


def read_tensors(
    reader: CheckpointReader, names: Sequence[str], plan: OffloadPlan, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor), on a GPU if the device is one; tensors that stay on the host are views of mapped files."""
    if device.type != "cuda" or not hasattr(os, "preadv"):
        yield from reader.read(list(names))
        return
    from mllama_cli.checkpoint.gpu_reader import read_to_gpu

    yield from reader.read([name for name in names if plan.covers(name)])
    yield from read_to_gpu([(name, reader.tensors[name]) for name in names if not plan.covers(name)], device)


def loaded_bytes(
    info: TensorInfo,
    *,
    packed: bool,
    scheme: Scheme | None,
    merged: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Return the bytes that a loaded tensor takes: none on a CPU if it can stay in the mapped file.

    Args:
        packed: whether it is part of a matrix that is stored quantized.
        scheme: how to quantize it while loading, if at all.
        merged: whether an adapter changes it, so that it cannot stay in the file.
        dtype: the dtype of weights.
    """
    stored = torch_dtype(info)
    if scheme is not None:
        outputs, inputs = info.shape
        return outputs * (4 * scheme.words(inputs) + stored.itemsize * scheme.groups(inputs))
    if device.type == "cpu" and (packed or stored == dtype) and not merged:
        return 0
    return info.nbytes if packed else info.elements * dtype.itemsize
