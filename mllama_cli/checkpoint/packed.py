"""Packed matrices as compressed-tensors stores them: three tensors for one weight."""

from pathlib import Path

from mllama_cli.checkpoint.header import TensorInfo
from mllama_cli.core.errors import CheckpointError

PACKED, SCALE, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"


def packed_matrices(file: Path, header: dict[str, TensorInfo]) -> dict[str, tuple[int, int]]:
    """By module, number of weights and bits of each: the packed words alone do not say. Reads 16 bytes a matrix."""
    found = {}
    with file.open("rb") as opened:
        for name, info in header.items():
            module = name.removesuffix(PACKED)
            shape = header.get(module + SHAPE)
            if module == name or shape is None or shape.shape != (2,) or len(info.shape) != 2:
                continue
            opened.seek(shape.start)
            data = opened.read(shape.nbytes)
            rows, inputs = (
                int.from_bytes(data[at : at + shape.nbytes // 2], "little") for at in (0, shape.nbytes // 2)
            )
            if rows != info.shape[0] or not 0 < inputs <= 32 * info.shape[1]:
                raise CheckpointError(
                    f"{file}: {module}{SHAPE} says [{rows}, {inputs}], which {list(info.shape)} words do not hold",
                    "Download or copy the file again, or quantize the model again.",
                )
            found[module] = (rows * inputs, 32 * info.shape[1] // inputs)
    return found
