"""Shards: tars and parquet files that lie about sizes and counts, unfold to far more than they are, or are damaged."""

import gzip
import io
import random
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mllama_cli.captioning.shards.entry import ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.reading import ShardRead, ShardUnreadable, read_shards
from mllama_cli.core.errors import ImageError, MllamaError
from tests.hostile.cases import SECRET, Case, check_message
from tests.processing.pictures import file_of, noise

PICTURE = file_of(noise())
END = bytes(1024)
CONTROLS = "\x1b]0;owned\x07\x1b[2J"
DAMAGES = 40


def header(name: str = "a.png", kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: Any) -> bytes:
    """Return a member's header, whatever its fields claim."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def member(name: str, data: bytes = PICTURE, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, kind, len(data)) + data + bytes(-len(data) % 512)


def pax(**records: str) -> bytes:
    """Return an extended header."""
    lines = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        length = len(rest) + len(str(len(rest) + len(str(len(rest)))))
        lines += str(length).encode() + rest
    return member("pax", lines, tarfile.XHDTYPE)


def _negative(size: int) -> bytes:
    """Return a header whose size is a negative number in base 256."""
    block = bytearray(header())
    block[124:136] = b"\xff" + (2**88 - size).to_bytes(11)
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


TARS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "zeros": lambda: bytes(10_000),
    "a size of 8 TB": lambda: header(size=2**43) + PICTURE,
    "a size of -1": lambda: _negative(1) + PICTURE * 99,
    "a size of -2^60": lambda: _negative(2**60) + PICTURE,
    "a picture of 256 MB that is not there": lambda: header(size=2**28) + PICTURE,
    "an extended size of 10^18": lambda: pax(size="9" * 18) + member("a.png"),
    "an extended size of -1": lambda: pax(size="-1") + member("a.png"),
    "an extended size of 5,000 digits": lambda: pax(size="9" * 5000) + member("a.png"),
    "an extended header of 1 TB": lambda: header(kind=tarfile.XHDTYPE, size=2**40) + bytes(10_000),
    "a long name of 1 TB": lambda: header(kind=tarfile.GNUTYPE_LONGNAME, size=2**40) + bytes(10_000),
    "a name of 1 MB": lambda: member("n", b"x" * 1_000_000, tarfile.GNUTYPE_LONGNAME) + member("a.png"),
    "an extended name of 1 MB": lambda: pax(path="x" * 1_000_000 + ".png") + member("a.png"),
    "an extended header of wrong lengths": lambda: member("p", b"999999 path=a\n", tarfile.XHDTYPE) + member("a.png"),
    "an extended header of length 0": lambda: member("p", b"0 path=a\n" * 999, tarfile.XHDTYPE) + member("a.png"),
    "an extended header that never ends": lambda: member("p", b"1" * 100_000, tarfile.XHDTYPE) + member("a.png"),
    "names above the folder": lambda: member("../../../etc/passwd.png") + member("/etc/x.png") + END,
    "names of control characters": lambda: member(f"{CONTROLS}.png", b"no") + member("a\nb\r.png", b"") + END,
    "names that are not UTF-8": lambda: member("\udcff\udcfe.png") + END,
    "names that turn the text": lambda: member("\u202egnp.exe.png", b"no") + END,
    "no names": lambda: member("") * 9 + member("/") + member("..") + member(".png") + END,
    "a password in a name": lambda: member(f"http://bob:{SECRET}@host/x.png", b"no") + END,
    "links": lambda: b"".join(
        header("a.png", kind, linkname="/etc/passwd") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) * 9
    ),
    "devices": lambda: b"".join(
        header("a.png", kind, devmajor=1, devminor=5) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    ),
    "a folder that has a size": lambda: header("a", tarfile.DIRTYPE, 2**40) + member("b.png") + END,
    "a sparse file of 8 TB": lambda: header(kind=tarfile.GNUTYPE_SPARSE, size=2**43) + bytes(10_000),
    "kinds that nobody knows": lambda: b"".join(
        header(kind=bytes((each,)), size=512) + bytes(512) for each in range(256)
    ),
    "a wrong checksum": lambda: member("a.png") + header()[:148] + b"1" * 8 + bytes(356),
    "a tar in a tar": lambda: member("a.tar", member("b.png") + END) + END,
    "a zip": lambda: b"PK\3\4" + bytes(9999),
    "deep JSON": lambda: member("a.png") + member("a.json", b"[" * 500_000) + END,
    "long numbers in JSON": lambda: member("a.png") + member("a.json", b"9" * 500_000) + END,
    "text of 2 MB": lambda: member("a.png") + member("a.txt", bytes(2_000_000)) + END,
}  # fmt: skip
HEAVY_TARS: dict[str, Callable[[], bytes]] = {
    "an endless chain of extended headers": lambda: pax(comment="x" * 900) * 100_000,
    "an endless chain of long names": lambda: member("n", b"x" * 4000, tarfile.GNUTYPE_LONGNAME) * 50_000,
    "a million empty members": lambda: header("a.png") * 1_000_000,
    "500,000 samples": lambda: b"".join(header(f"{each}.png") for each in range(500_000)),
    "one sample of 9 pictures of 100 MB": lambda: member("a.png", bytes(100_000_000)) * 9,
    "one sample of 500,000 extensions": lambda: b"".join(header(f"a.x{each}") for each in range(500_000)),
    "180 pictures of 5 MB": lambda: b"".join(member(f"{each}.png", bytes(5_000_000)) for each in range(180)),
}
PACKED: dict[str, Callable[[], bytes]] = {
    "gzip header alone": lambda: b"\x1f\x8b\x08",
    "10 GB of zeros": lambda: _packed([bytes(10_000_000)], 1000),
    "a picture of 10 GB": lambda: _packed([header(size=10**10), *[bytes(10_000_000)] * 1000], 1),
    "8 million members": lambda: _packed([header("a.png") * 80_000], 100),
    "a gzip in a gzip": lambda: gzip.compress(_packed([bytes(1_000_000)], 999)),
    "a picture of 200 MB, 30 times": lambda: _packed([header("a.png", size=200_000_000), *[bytes(10**7)] * 20], 30),
}


def _packed(pieces: list[bytes], times: int) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        for _ in range(times):
            for piece in pieces:
                packed.write(piece)
    return file.getvalue()


def _table(columns: dict[str, Any], **options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), file, **options)
    return file.getvalue()


def ordinary_tar() -> bytes:
    return member("a.png") + pax(path="b.png", size=str(len(PICTURE))) + member("b.png") + member("b.txt", b"x") + END


def ordinary_parquet() -> bytes:
    images = [{"bytes": PICTURE, "path": f"{each}.png"} for each in range(20)]
    return _table({"key": [str(each) for each in range(20)], "image": images, "txt": ["a text"] * 20})


def _same(value: Any, rows: int, kind: str, **options: Any) -> bytes:
    """Return a column that repeats a value, which is stored once."""
    import pyarrow as pa

    array = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], kind))
    return _table({"image": array}, compression="zstd", **options)


def _nested(depth: int) -> bytes:
    import pyarrow as pa

    kind: Any = pa.int8()
    for _ in range(depth):
        kind = pa.list_(kind)
    table = pa.table({"image": pa.array([PICTURE]), "deep": pa.nulls(1, kind)})
    return _table(table)


def _nulls(rows: int) -> bytes:
    import pyarrow as pa

    return _table({"image": pa.nulls(rows, pa.binary())}, compression="zstd", row_group_size=rows)


def _claiming(rows: int) -> bytes:
    """Return a file whose footer claims to have a number of rows."""
    data = _table({"image": [PICTURE] * 77})
    assert data.count(b"\x16\x9a\x01") > 1
    zigzag, varint = rows << 1, b""
    while zigzag > 127:
        varint, zigzag = varint + bytes((zigzag & 127 | 128,)), zigzag >> 7
    size = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - size : -8].replace(b"\x16\x9a\x01", b"\x16" + varint + bytes((zigzag,)))
    return data[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1"


PARQUETS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "magic alone": lambda: b"PAR1PAR1",
    "a footer of 4 GB": lambda: b"PAR1" + b"\xff" * 4 + b"PAR1",
    "a footer of what is there": lambda: b"PAR1" + bytes(9999) + struct.pack("<I", 9999) + b"PAR1",
    "a footer of nested structures": lambda: b"PAR1" + b"\x1c" * 10**6 + struct.pack("<I", 10**6) + b"PAR1",
    "a footer of a list of 2^31": lambda: b"PAR1\x15\x02\x19\xfc\xff\xff\xff\xff\x07" + struct.pack("<I", 9) + b"PAR1",
    "an encrypted file": lambda: b"PARE" + bytes(99) + struct.pack("<I", 50) + b"PARE",
    "no rows": lambda: _table({"image": []}),
    "no columns": lambda: _table({}),
    "2^62 rows": lambda: _claiming(2**62),
    "100 million rows": lambda: _claiming(10**8),
    "-1 rows": lambda: _claiming(2**63 - 1),
    "columns of control characters": lambda: _table({f"{CONTROLS}\n": [PICTURE], f"http://a:{SECRET}@h": [1]}),
    "the same column twice": lambda: _twice(),
    "keys of control characters": lambda: _table({"key": ["\x1b[2J\n", "\0"], "image": [b"no", b""]}),
    "keys of 1 MB": lambda: _table({"key": ["x" * 10**6, "y" * 10**6], "image": [PICTURE] * 2}),
    "numbers for pictures": lambda: _table({"image": [1, 2]}),
    "lists for pictures": lambda: _table({"image": [[PICTURE], []]}),
    "URLs that are none": lambda: _table({"url": ["http://[", "http://", "http://\0/", f"http://b:{SECRET}@10.0.0.1/x"]}),
    "URLs of this network": lambda: _table({"url": ["http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/x"]}),
    "a URL of 1 MB": lambda: _table({"url": ["http://a.test/" + "x" * 10**6]}),
    "files of this machine": lambda: _table({"url": ["file:///etc/passwd", "/etc/passwd", "s3://a/b", "data:,x"]}),
    "texts of 2 MB": lambda: _table({"image": [PICTURE], "txt": ["x" * 2_000_000]}),
    "lists in 90 lists": lambda: _nested(90),
}  # fmt: skip
HEAVY_PARQUETS: dict[str, Callable[[], bytes]] = {
    "20,000 columns": lambda: _table({f"c{each}": [1] for each in range(20_000)}),
    "20 million nulls": lambda: _nulls(20_000_000),
    "a dictionary of 100 MB, 500 times": lambda: _same(bytes(100_000_000), 500, "binary"),
    "a dictionary of 1 MB, a million times": lambda: _same(bytes(1_000_000), 10**6, "binary"),
    "a URL, 200,000 times": lambda: _same("http://127.0.0.1/", 200_000, "string"),
    "a page of 900 MB": lambda: _table(
        {"image": [bytes(90_000_000)] * 10}, compression="zstd", use_dictionary=False, data_page_size=2**31 - 1
    ),
    "pages of 250 MB": lambda: _table({"image": [bytes(250_000_000)] * 4}, compression="zstd", use_dictionary=False),
    "lists in 5,000 lists": lambda: _nested(5000),
}


def _twice() -> bytes:
    import pyarrow as pa

    return _table(pa.Table.from_arrays([pa.array([PICTURE]), pa.array([b"no"])], ["image", "image"]))  # type: ignore[arg-type]


def cases() -> Iterator[Case]:
    """Yield an attempt to read each shard, of which a picture at most is in memory at a time."""
    for name, make in (TARS | HEAVY_TARS).items():
        yield _case("s.tar", name, make, heavy=name in HEAVY_TARS)
    for name, make in PACKED.items():
        yield _case("s.tar.gz", name, make, heavy=True)
    for name, make in (PARQUETS | HEAVY_PARQUETS).items():
        yield _case("s.parquet", name, make, heavy=name in HEAVY_PARQUETS)
    ordinary = (
        member("a.png") + pax(path="b.png", size=str(len(PICTURE))) + member("b.png") + member("b.txt", b"x") + END
    )
    for number in range(DAMAGES):
        yield _case("s.tar", f"damage {number}", lambda number=number: _damaged(ordinary, number))
        yield _case("s.tar.gz", f"damage {number}", lambda number=number: _damaged(gzip.compress(ordinary), number))
        yield _case("s.parquet", f"damage {number}", lambda number=number: _damaged(ordinary_parquet(), number))


def read_shard_file(path: Path) -> int:
    """Read a shard with all its pictures and texts; what is wrong is an error that fits a line. Count the pictures."""
    shard, pictures = Shard(str(path), "s", "parquet" if path.suffix == ".parquet" else "tar"), 0
    for item in read_shards([shard], ReadOptions(texts=True)):
        if isinstance(item, ShardImage):
            pictures += 1
            try:
                item.read()
                item.variable("json.a")
            except MllamaError as error:
                check_message(error)
        elif isinstance(item, ShardUnreadable):
            check_message(item.error)
        elif isinstance(item, ShardRead) and item.damage:
            check_message(ImageError(item.damage))
    return pictures


def _case(file: str, name: str, make: Callable[[], bytes], *, heavy: bool = False) -> Case:
    def prepare(folder: Path) -> None:
        (folder / file).write_bytes(make())

    return Case(f"{file}: {name}", lambda folder: read_shard_file(folder / file), heavy, prepare)


def _damaged(data: bytes, number: int) -> bytes:
    """Return data cut somewhere, or with some bytes changed."""
    source = random.Random(number)
    if number % 4 == 0:
        return data[: source.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(source.choice((1, 3, 20))):
        changed[source.randrange(len(data))] = source.randrange(256)
    return bytes(changed)
