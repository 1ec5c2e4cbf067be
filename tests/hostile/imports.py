"""Files that `mllama import` reads: GGUF headers and Meta's pickles by strangers."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.gguf.config import gguf_config, merged_entries
from mllama_cli.checkpoint.gguf.header import read_gguf
from mllama_cli.checkpoint.gguf.vocabulary import gguf_vocabulary
from mllama_cli.checkpoint.meta.pickled import read_pickled
from tests.checkpoint.test_gguf_header import SOUND, entry, file, tensor, text
from tests.cli.test_import_meta import nested_key
from tests.hostile.cases import Case

_U64 = struct.Struct("<Q")


def _list(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


GGUF: dict[str, bytes] = {
    **{f"cut at {percent} %": SOUND[: len(SOUND) * percent // 100] for percent in range(0, 100, 3)},
    **{f"byte {place} is {value}": SOUND[:place] + bytes([value]) + SOUND[place + 1 :]
       for place in range(4, len(SOUND) - 68, 3) for value in (0, 255)},
    **{f"counts {counts}": file((), (), counts=counts)
       for counts in ((2**64 - 1, 0), (0, 2**64 - 1), (10_000, 10_000), (2**63, 2**63))},
    **{f"shape {shape}": file((), (tensor(shape=shape),))
       for shape in ((2**63, 2**63), (2**64 - 1,), (0,), (), (1,) * 4, (32, 2**40), (1,) * 100_000)},
    **{f"offset {offset}": file((), (tensor(offset=offset),)) for offset in (1, 31, 64, 2**63, 2**64 - 68)},
    "overlapping tensors": file((), (tensor("a"), tensor("b", offset=32)), bytes(200)),
    "the same tensor twice": file((), (tensor("a"), tensor("a", offset=96)), bytes(200)),
    "the same entry twice": file((entry("a", 4, bytes(4)),) * 2),
    "an unknown type": file((entry("a", 99, bytes(8)),)),
    "lists in lists": file((entry("a", 9, _list(9, 1, _list(9, 1, b""))),)),
    "a list of 2 ** 63 texts": file((entry("a", 9, _list(8, 2**63, b"")),)),
    "a list of 2 ** 63 numbers": file((entry("a", 9, _list(4, 2**63, b"")),)),
    "a text of 2 ** 63 bytes": file((entry("a", 8, _U64.pack(2**63)),)),
    "a name of 1 MB with an escape sequence": file((), (tensor("\x1b]0;x\x07" + "n" * 10**6),)),
    "a key that is not UTF-8": file((text(b"\xff\xfe") + struct.pack("<I", 4) + bytes(4),)),
    "an alignment of 0": file((entry("general.alignment", 4, bytes(4)),)),
    "an alignment of a text": file((entry("general.alignment", 8, text("x")),)),
}  # fmt: skip
HEAVY_GGUF: dict[str, Callable[[], bytes]] = {
    "6 million texts": lambda: file(
        tuple(entry(f"t{i}", 9, _list(8, 10**6, (_U64.pack(2) + b"ab") * 10**6)) for i in range(6))
    ),
    "8 million large numbers": lambda: file(
        tuple(entry(f"t{i}", 9, _list(10, 10**6, (b"\xff" * 8) * 10**6)) for i in range(8))
    ),
    "60 million flags": lambda: file(tuple(entry(f"t{i}", 9, _list(7, 10**6, bytes(10**6))) for i in range(60))),
    "a header beyond the limit": lambda: file(
        tuple(entry(f"t{i}", 9, _list(7, 10**6, bytes(10**6))) for i in range(90))
    ),
}


class _Calls:
    """What runs code when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _cyclic() -> object:
    found: dict[str, Any] = {}
    found["again"] = found
    return found


PICKLES: dict[str, bytes] = {
    "code": pickle.dumps(_Calls(exec, "raise SystemExit(3)"), 2),
    "a command": pickle.dumps(_Calls(__import__("os").system, "exit 3"), 2),
    "a dictionary of itself": pickle.dumps(_cyclic(), 2),
    "a nested key": nested_key(),
    "2 GB of zeros": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "a counter of itself": b"ccollections\nCounter\n)R.",
    "deep lists": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "deep tuples": b"\x80\x02N" + b"\x85" * 10**6 + b".",
    "protocol 4": pickle.dumps({"a": 1}, 4),
    "nothing": b"",
    "no stop": b"\x80\x02}",
    "a number of 200 bytes": b"\x80\x02}X\x01\x00\x00\x00a\x8a\xc8" + b"\x7f" * 200 + b"s.",
    "an empty stack": b"\x80\x02R.",
    "a huge size": (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage"
        b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ftQK\x00J\xff\xff\xff\x7fJ\xff\xff\xff"
        b"\x7f\x86K\x01K\x01\x86\x89}tRs."
    ),
    "4 MB of numbers": b"\x80\x02](" + b"K\x01" * (2**21 - 10) + b"e.",
    "5 MB": b"\x80\x02](" + b"K\x01" * (5 * 2**19) + b"e.",
}


def _archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a part of 1 GB in 1 MB": lambda: _archive({"a/data.pkl": b"}.", "a/data/0": bytes(10**9)}, zipfile.ZIP_DEFLATED),
    "200,000 parts": lambda: _archive({f"a/{number:0100d}": b"" for number in range(200_000)}),
    "no pickle": lambda: _archive({"a/data/0": b"x"}),
    "not an archive": lambda: b"PK" + bytes(10**6),
    "an archive that is cut": lambda: _archive({"a/data.pkl": b"\x80\x02}."})[:-30],
    "a path above": lambda: _archive({"../../data.pkl": b"\x80\x02}.", "a/version": b"3"}),
}


def _gguf(path: Path) -> None:
    found = read_gguf(path)
    gguf_config([found])
    gguf_vocabulary(merged_entries([found]), str(path))


def _case(name: str, made: Callable[[], bytes], read: Callable[[Path], object], *, heavy: bool = False) -> Case:
    def write(folder: Path) -> None:
        (folder / "file").write_bytes(made())

    return Case(name, lambda folder: read(folder / "file"), heavy, write)


def cases() -> Iterator[Case]:
    """Yield headers, pickles and archives."""
    for name, data in GGUF.items():
        yield _case(f"GGUF: {name}", lambda data=data: data, _gguf)
    for name, make in HEAVY_GGUF.items():
        yield _case(f"GGUF: {name}", make, _gguf, heavy=True)
    for name, data in PICKLES.items():
        archive = _archive({"archive/data.pkl": data, "archive/version": b"3\n", "archive/data/0": bytes(64)})
        yield _case(f"pickle: {name}", lambda data=archive: data, read_pickled, heavy=True)
    for name, make in ARCHIVES.items():
        yield _case(f"archive: {name}", make, read_pickled, heavy=True)
