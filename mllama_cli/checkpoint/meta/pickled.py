"""Read what a .pth file of torch's holds, without reading the weights and without running code that is in it.

The file is a zip archive: a pickle that names the tensors, and the bytes of each storage, not compressed. The pickle
may use only what weights need, which is checked before it is read: with ``weights_only``, which would allow a little
more, and in fake mode, which allocates nothing.
"""

import io
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mllama_cli.checkpoint.header import MAX_TENSORS, STORED_DTYPES
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown

MAX_PICKLE_BYTES = 4 * 2**20
"""That of the 90B, with 1,500 tensors, has 300 kB."""

MAX_DIRECTORY_BYTES = 4 * 2**20
"""Of the archive: 100 bytes for each tensor."""

_CLASSES = (
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_OPCODES = {
    *_TUPLES, "PROTO", "STOP", "GLOBAL", "REDUCE", "BUILD", "MARK", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
}  # fmt: skip

_DTYPES = {getattr(torch, STORED_DTYPES[name].torch_name): name for name in ("F32", "F16", "BF16")}


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """One tensor: dtype by its safetensors name, shape, and where its bytes begin in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row, of a scalar those of the value."""
        return STORED_DTYPES[self.dtype].bits // 8 * (torch.Size(self.shape[1:]).numel() if self.shape else 1)

    @property
    def nbytes(self) -> int:
        return self.row_bytes * (self.shape[0] if self.shape else 1)


def read_pickled(path: Path) -> dict[str, PickledTensor]:
    """Return the tensors of a file by name. Raise CheckpointError for anything but a dictionary of plain weights."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    _require_plain_archive(path)
    size = path.stat().st_size
    try:
        with FakeTensorMode():
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # the unpickler raises whatever its input leads to
        raise _damaged(path, "it does not hold plain weights") from error
    if not isinstance(found, dict) or len(found) > MAX_TENSORS:
        raise _damaged(path, "it does not hold weights by name")
    tensors = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _damaged(path, f"{shown(name)} is not a tensor")
        tensors[name] = _tensor(path, size, name, value)
    return tensors


def _require_plain_archive(path: Path) -> None:
    """Raise CheckpointError unless the file is a zip archive, none of whose parts unfolds to more than the file has."""
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            pickles = [archive.read(part) for part in parts if part.filename.endswith(".pkl") and _is_small(part)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise _damaged(path, "it is cut short, or was made by a version of torch before 1.6") from error
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise _damaged(path, f"{shown(part.filename)} in it is compressed")
        if part.filename.endswith(".pkl") and part.file_size > MAX_PICKLE_BYTES:
            raise _damaged(path, f"{shown(part.filename)} in it has {part.file_size} bytes")
    for data in pickles:
        _require_plain_pickle(path, data)


class _BoundedFile(io.FileIO):
    """A file of which zipfile reads no directory that would take all memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile
        return super().read(size) or b""


def _is_small(part: zipfile.ZipInfo) -> bool:
    return part.compress_type == zipfile.ZIP_STORED and part.file_size == part.compress_size <= MAX_PICKLE_BYTES


def _require_plain_pickle(path: Path, data: bytes) -> None:
    """Raise CheckpointError for a pickle with more than tensors, plain values, and lists, tuples and dictionaries.

    A tuple is in it once: of tuples of the same tuples the hash, as of a key, would take forever.
    """
    tuples: set[int] = set()
    last = ""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "GLOBAL" and not _is_plain(str(argument)):
                found = str(argument).replace(" ", ".")
                raise _damaged(path, f"it does not hold plain weights: {shown(found)} is in it, which may run code")
            if name not in _OPCODES:
                raise _damaged(path, f"it does not hold plain weights: its pickle uses {name}")
            if name in ("BINPUT", "LONG_BINPUT"):
                (tuples.add if last in _TUPLES else tuples.discard)(int(argument or 0))
            elif name in ("BINGET", "LONG_BINGET") and argument in tuples:
                raise _damaged(path, "it does not hold plain weights: a tuple is in it several times")
            last = name
    except ValueError as error:
        raise _damaged(path, "its pickle is cut short, or is none") from error


def _is_plain(name: str) -> bool:
    return name in _CLASSES or (name.startswith("torch ") and name.endswith("Storage") and "." not in name)


def _tensor(path: Path, size: int, name: str, value: Tensor) -> PickledTensor:
    if value.dtype not in _DTYPES or value.layout != torch.strided or not value.is_contiguous():
        raise _damaged(path, f"{shown(name)} is {str(value.dtype).removeprefix('torch.')}, or not in one piece")
    offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if not isinstance(offset, int):
        raise _damaged(path, f"{shown(name)} has no bytes in it")
    start = offset + int(value.storage_offset()) * value.element_size()
    tensor = PickledTensor(path, _DTYPES[value.dtype], tuple(value.shape), start)
    if min(tensor.shape, default=1) < 1 or start + tensor.nbytes > size:
        raise _damaged(path, f"{shown(name)} ends behind its end")
    return tensor


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a sound file of Meta's weights: {why}", COPY_AGAIN)
