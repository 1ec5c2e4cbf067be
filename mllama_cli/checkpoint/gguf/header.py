"""Read and check the header of a GGUF file, without reading the weights.

Format, little-endian: "GGUF", version (u32), numbers of tensors and of entries (u64); the entries (key, type, value);
the tensors (name, dimensions innermost first, number format, offset); padding; the data.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.files import GGUF_MAGIC
from mllama_cli.checkpoint.gguf.blocks import FORMATS, BlockFormat
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown

VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 * 2**20
"""Llama 3's vocabulary with its merges takes 9 MB."""
MAX_TENSORS = 10_000
MAX_ENTRIES = 10_000
MAX_STRING_BYTES = 2**20
MAX_ARRAY = 1_000_000
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_UNREADABLE = {
    10: "Q2_K", 11: "Q3_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its number format, its shape outermost first, and the range of its bytes in the file."""

    format: BlockFormat
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A file's ``entries`` (numbers, texts and lists of them) and its ``tensors``, by name."""

    path: Path
    entries: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Return what a file's header says. Raise CheckpointError if it is cut short, damaged or of another kind."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            data = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "Check the file and its rights.") from error
    if data[: len(GGUF_MAGIC)] != GGUF_MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file", "Name a file that ollama or llama.cpp made.")
    return _Parser(path, data, size).parse()


class _Parser:
    """Reads values one after another from the start of a file of ``size`` bytes."""

    def __init__(self, path: Path, data: bytes, size: int) -> None:
        self._path, self._data, self._size = path, data, size
        self._position = len(GGUF_MAGIC)

    def parse(self) -> GgufFile:
        version = self._number("I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self._path} is a GGUF file of version {version}; only versions 2 and 3 are read",
                "Pull or download the model again." if version == 1 else COPY_AGAIN,
            )
        tensors, entries = self._number("Q"), self._number("Q")
        for count, limit, what in ((tensors, MAX_TENSORS, "tensors"), (entries, MAX_ENTRIES, "entries")):
            if count > limit:
                raise self._damaged(f"it says that it has {count} {what}, more than any model")
        found: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in found:
                raise self._damaged(f"the entry {shown(key)} is there twice")
            found[key] = self._value(self._number("I"), key)
        declared = [self._declared() for _ in range(tensors)]
        alignment = found.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 2**16:
            raise self._damaged(f"its alignment is {shown(alignment)}")
        begin = -(-self._position // alignment) * alignment
        placed: dict[str, GgufTensor] = {}
        for name, form, shape, offset in declared:
            if name in placed:
                raise self._damaged(f"{shown(name)} is there twice")
            placed[name] = self._placed(name, form, shape, begin + offset)
        self._require_apart(placed)
        return GgufFile(self._path, found, placed)

    def _declared(self) -> tuple[str, BlockFormat, tuple[int, ...], int]:
        """Return the next tensor's name, format, shape and offset in the data."""
        name = self._string()
        count = self._number("I")
        if count > MAX_DIMENSIONS:
            raise self._damaged(f"{shown(name)} has {count} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(count)]))
        kind, offset = self._number("I"), self._number("Q")
        form = FORMATS.get(kind)
        if form is None:
            raise CheckpointError(
                f"{self._path}: {shown(name)} is stored as {_UNREADABLE.get(kind, f'number format {kind}')}, "
                "which is not read",
                f"Get the model as one of {', '.join(each.name for each in FORMATS.values())}.",
            )
        return name, form, shape, offset

    def _placed(self, name: str, form: BlockFormat, shape: tuple[int, ...], start: int) -> GgufTensor:
        elements = math.prod(shape)
        if elements < 1 or (shape[-1] if shape else 1) % form.elements:
            raise self._damaged(f"{shown(name)} has the shape {shown(list(shape))}, which {form.name} cannot hold")
        end = start + elements // form.elements * form.nbytes
        if end > self._size:
            raise CheckpointError(
                f"{self._path} is cut short: {shown(name)} ends at byte {end}, the file at {self._size}",
                "The download or copy did not finish: run it again.",
            )
        return GgufTensor(form, shape, start, end)

    def _require_apart(self, tensors: dict[str, GgufTensor]) -> None:
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
            if tensor.start < end:
                raise self._damaged(f"{shown(name)} overlaps another tensor")
            end = tensor.end

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"{shown(key)} has a value of the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if count > MAX_ARRAY:
            raise self._damaged(f"{shown(key)} says that it has {count} values")
        if inner == _STRING:
            return [self._string() for _ in range(count)]
        if inner not in _SCALARS:
            raise self._damaged(f"{shown(key)} has values of the unknown type {inner}")
        return list(self._unpacked(f"<{count}{_SCALARS[inner]}"))

    def _number(self, code: str) -> Any:
        return self._unpacked(f"<{code}")[0]

    def _unpacked(self, form: str) -> tuple[Any, ...]:
        start = self._advance(struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)

    def _string(self) -> str:
        length = self._number("Q")
        if length > MAX_STRING_BYTES:
            raise self._damaged(f"a text of {length} bytes is in it")
        start = self._advance(length)
        try:
            return self._data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self._damaged("a text in it is not UTF-8") from error

    def _advance(self, count: int) -> int:
        """Return the position of the next ``count`` bytes, and move behind them."""
        start = self._position
        if start + count > len(self._data):
            if len(self._data) < self._size:
                raise self._damaged(f"its header has more than {MAX_HEADER_BYTES >> 20} MiB")
            raise self._damaged("its header is cut short")
        self._position = start + count
        return start

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is not a sound GGUF file: {why}", COPY_AGAIN)
