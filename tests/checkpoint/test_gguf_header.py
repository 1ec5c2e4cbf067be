"""Headers of GGUF files that lie, and headers cut short anywhere."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mllama_cli.checkpoint.gguf.header import MAX_STRING_BYTES, read_gguf
from mllama_cli.core.errors import CheckpointError


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str = "a", shape: tuple[int, ...] = (32, 2), kind: int = 8, offset: int = 0) -> bytes:
    """Return the entry of a tensor, by default of two rows of 32 weights in Q8_0: 68 bytes."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = bytes(68),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensors_, entries_ = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors_, entries_) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


SOUND = file(
    (
        entry("general.architecture", 8, text("mllama")),
        entry("count", 4, struct.pack("<I", 7)),
        entry("list", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3)),
        entry("names", 9, struct.pack("<IQ", 8, 2) + text("x") + text("é")),
    ),
    (tensor(),),
)


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(SOUND)
    found = read_gguf(path)
    assert found.entries == {"general.architecture": "mllama", "count": 7, "list": [1, -2, 3], "names": ["x", "é"]}
    assert found.tensors["a"].shape == (2, 32)
    assert (found.tensors["a"].end, found.tensors["a"].end - found.tensors["a"].start) == (len(SOUND), 68)


@pytest.mark.parametrize("length", range(4, len(SOUND)))
def test_a_file_cut_short_anywhere_is_said(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(SOUND[:length])
    with pytest.raises(CheckpointError, match="cut short"):
        read_gguf(path)


LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no GGUF": (lambda: b"PK" + bytes(100), "is not a GGUF file"),
    "version 1": (lambda: file(version=1), "version 1"),
    "big endian": (lambda: b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "billions of tensors": (lambda: file(counts=(2**40, 0)), "1099511627776 tensors"),
    "billions of entries": (lambda: file(counts=(0, 2**63)), "entries, more than any model"),
    "an endless text": (lambda: file((struct.pack("<Q", MAX_STRING_BYTES + 1),)), "a text of 1048577 bytes"),
    "an endless list": (lambda: file((entry("k", 9, struct.pack("<IQ", 4, 2**60)),)), "1152921504606846976 values"),
    "a list of lists": (lambda: file((entry("k", 9, struct.pack("<IQ", 9, 1)),)), "unknown type 9"),
    "a value of no type": (lambda: file((entry("k", 99, b""),)), "unknown type 99"),
    "a text that is not UTF-8": (lambda: file((entry("k", 8, text(b"\xff\xfe")),)), "not UTF-8"),
    "an entry twice": (lambda: file((entry("k", 4, bytes(4)),) * 2), "'k' is there twice"),
    "no alignment": (lambda: file((entry("general.alignment", 4, bytes(4)),)), "alignment is 0"),
    "a tensor twice": (lambda: file((), (tensor(), tensor())), "'a' is there twice"),
    "tensors that overlap": (lambda: file((), (tensor(), tensor("b", offset=34)), bytes(200)), "overlaps"),
    "a tensor behind the end": (lambda: file((), (tensor(offset=32),)), "is cut short: 'a' ends at byte"),
    "a tensor far behind the end": (lambda: file((), (tensor(offset=2**64 - 32),)), "is cut short"),
    "a tensor larger than memory": (lambda: file((), (tensor(shape=(2**40, 2**40)),)), "is cut short"),
    "many dimensions": (lambda: file((), (tensor(shape=(1,) * 9),)), "9 dimensions"),
    "a row of half a block": (lambda: file((), (tensor(shape=(48, 2)),)), "which Q8_0 cannot hold"),
    "no elements": (lambda: file((), (tensor(shape=(0, 32)),)), "cannot hold"),
    "a format that is not read": (lambda: file((), (tensor(kind=10),)), "is stored as Q2_K, which is not read"),
    "a format that nobody knows": (lambda: file((), (tensor(kind=999),)), "number format 999"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_said(tmp_path: Path, lie: str) -> None:
    made, words = LIES[lie]
    path = tmp_path / "x.gguf"
    path.write_bytes(made())
    with pytest.raises(CheckpointError, match=words) as caught:
        read_gguf(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message
