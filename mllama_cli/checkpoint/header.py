"""Read and check the header of a safetensors file, without reading the weights.

Format: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown
from mllama_cli.system.json_file import parse_object

MAX_HEADER_BYTES = 16 * 2**20
"""The 90B has about 1500 tensors, whose entries take 200 kB."""
MAX_TENSORS = 50_000
MAX_DIMENSIONS = 8
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Dtype:
    """A number format: torch's name and its bits."""

    torch_name: str
    bits: int


STORED_DTYPES = {
    "BOOL": Dtype("bool", 8), "U8": Dtype("uint8", 8), "I8": Dtype("int8", 8),
    "F8_E4M3": Dtype("float8_e4m3fn", 8), "F8_E5M2": Dtype("float8_e5m2", 8), "F8_E8M0": Dtype("float8_e8m0fnu", 8),
    "U16": Dtype("uint16", 16), "I16": Dtype("int16", 16), "F16": Dtype("float16", 16), "BF16": Dtype("bfloat16", 16),
    "U32": Dtype("uint32", 32), "I32": Dtype("int32", 32), "F32": Dtype("float32", 32),
    "U64": Dtype("uint64", 64), "I64": Dtype("int64", 64), "F64": Dtype("float64", 64),
}  # fmt: skip
"""Number formats by their safetensors names."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: dtype by its safetensors name, shape, and the range of its bytes in the file, [start, end)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file by name. Raise CheckpointError if the file is cut short or damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if first == _LFS_POINTER[:8] and file.read(len(_LFS_POINTER) - 8) == _LFS_POINTER[8:]:
                raise CheckpointError(
                    f"{path} is a Git LFS pointer: git fetched the name of the weights, not the weights",
                    "Run `git lfs pull` in that folder, or get the model with `mllama download`.",
                )
            if size < 8 or length > size - 8:
                raise _damaged(path, "its header is cut short")
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, f"its header has {length} bytes, more than any model's")
            data = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "Check the file and its rights.") from error
    try:
        header = parse_object(data, "its header", error=CheckpointError, hint=COPY_AGAIN)
    except CheckpointError as error:
        raise _damaged(path, error.message) from error
    if len(header) > MAX_TENSORS:
        raise _damaged(path, f"it has {len(header)} tensors, more than any model")
    begin = 8 + length
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise _damaged(path, "its __metadata__ is not a list of texts")
    tensors = {name: _tensor(path, name, entry, begin, size) for name, entry in header.items()}
    _require_in_order(path, tensors, begin, size)
    return tensors


def _require_in_order(path: Path, tensors: dict[str, TensorInfo], begin: int, size: int) -> None:
    """Raise CheckpointError unless the tensors fill the file without overlaps and holes, as the format asks."""
    end = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != end:
            problem = "overlaps another tensor" if info.start < end else "comes after bytes of no tensor"
            raise _damaged(path, f"{shown(name)} {problem}")
        end = info.end
    if end != size:
        raise _damaged(path, f"{size - end} bytes at its end belong to no tensor")


def _tensor(path: Path, name: str, entry: Any, begin: int, size: int) -> TensorInfo:
    label = shown(name)[1:-1]
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        start, end = entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"its entry for {label} cannot be read") from error
    numbers = (*shape, start, end)
    if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers) or start > end:
        raise _damaged(path, f"its entry for {label} makes no sense")
    if dtype in STORED_DTYPES and math.prod(shape) * STORED_DTYPES[dtype].bits != (end - start) * 8:
        raise _damaged(path, f"the size of {label} does not fit its shape")
    if begin + end > size:
        raise CheckpointError(
            f"{path} is cut short: {label} ends at byte {begin + end}, the file at {size}",
            "The download or copy did not finish: run it again.",
        )
    return TensorInfo(dtype, shape, begin + start, begin + end)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a sound safetensors file: {why}", COPY_AGAIN)
