"""Read stored tensors, on a GPU straight to the device, and decode matrices in other tools' forms there."""

import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mllama_cli.checkpoint.reader import CheckpointReader, torch_dtype
from mllama_cli.checkpoint.stored import StoredMatrix, StoredTensor
from mllama_cli.engine.parallel.cut import Kept
from mllama_cli.engine.weights.offload import OffloadPlan
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.quantization.schemes import Scheme


def read_tensors(
    reader: CheckpointReader,
    names: Sequence[str],
    plan: OffloadPlan,
    device: torch.device,
    repacked: set[str],
    pieces: Mapping[str, Kept],
    *,
    kept: bool = False,
    ranks: int = 1,
) -> Iterator[tuple[str, Tensor | PackedWeight]]:
    """Yield (name, tensor), on a GPU if the device is one; tensors that stay on the host are views of mapped files.

    Only the rows and columns in ``pieces`` are read of the tensors there. Matrices in other forms come whole, dense and
    last, those of the modules ``repacked`` in our packed layout. ``kept`` says that the caller keeps all others as they
    come; so many ``ranks`` read at the same time.
    """
    plain = [name for name in names if not isinstance(reader.tensors[name], StoredMatrix)]
    others = {name: stored for name in names if isinstance(stored := reader.tensors[name], StoredMatrix)}
    if device.type != "cuda" or not hasattr(os, "preadv"):
        for name, tensor in reader.read(plain):
            yield name, tensor[pieces[name]] if name in pieces else tensor
        on_gpu: set[str] = set()
    else:
        from mllama_cli.checkpoint.device_reader import read_to_device

        yield from reader.read(name for name in plain if plan.covers(name))
        uncovered = [(name, reader.tensors[name]) for name in plain if not plan.covers(name)]
        yield from read_to_device(uncovered, device, pieces, kept=kept, ranks=ranks)
        on_gpu = {name for name in others if not plan.covers(name)}
        flat = [((name, end), part) for name in others if name in on_gpu for end, part in others[name].parts.items()]
        arriving = read_to_device([(str(index), part) for index, (_, part) in enumerate(flat)], device, ranks=ranks)
        parts: dict[str, Tensor] = {}
        for ((name, end), _), (_, tensor) in zip(flat, arriving, strict=True):
            parts[end] = tensor
            if len(parts) == len(others[name].parts):
                yield name, _decoded(others[name], parts, name in repacked)
                parts = {}
    for name, stored in others.items():
        if name not in on_gpu:
            yield name, _decoded(stored, reader.parts(stored), name in repacked)


def _decoded(matrix: StoredMatrix, parts: dict[str, Tensor], repack: bool) -> Tensor | PackedWeight:
    if repack and matrix.form.packed is not None:
        return matrix.form.packed(parts)
    return matrix.form.dense(parts)


def loaded_bytes(
    stored: StoredTensor,
    *,
    packed: bool,
    scheme: Scheme | None,
    copied: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Return the bytes that a loaded tensor takes: none on a CPU if it can stay in the mapped file.

    Args:
        packed: whether it is part of a matrix in our packed layout.
        scheme: how to pack it while loading, if at all.
        copied: whether an adapter changes it or only some columns are kept, so that it cannot stay in the file.
        dtype: the dtype of weights.
    """
    info, kept = stored.info, torch_dtype(stored.info)
    if scheme is not None:
        outputs, inputs = info.shape
        return scheme.nbytes(outputs, inputs, kept.itemsize)
    stays = not copied and not isinstance(stored, StoredMatrix)
    if device.type == "cpu" and (packed or kept == dtype) and stays:
        return 0
    return info.nbytes if packed else info.elements * dtype.itemsize
