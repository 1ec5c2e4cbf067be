"""Damaged tars and parquet files."""

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.conftest import Fuzz
from tests.fuzz.inputs import damaged
from tests.hostile.shards import header, member, ordinary_parquet, ordinary_tar, pax, read_shard_file

HEADERS = tuple(
    header(kind=kind, size=size)
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.SYMTYPE)
    for size in (0, 512, 2**40)
)
PIECES = (*HEADERS, pax(path="c.png"), member("c.json", b"{}"), b"0 path=", b"99 size=-1\n", b"\xff" * 12)


def packed_tar() -> bytes:
    return gzip.compress(ordinary_tar())


@pytest.mark.parametrize(
    ("name", "make", "pictures"),
    [("s.tar", ordinary_tar, 2), ("s.tar.gz", packed_tar, 2), ("s.parquet", ordinary_parquet, 20)],
)
def test_a_shard(name: str, make: Callable[[], bytes], pictures: int, fuzz: Fuzz, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")

    def read(data: bytes) -> int:
        (tmp_path / name).write_bytes(data)
        return read_shard_file(tmp_path / name)

    assert read(make()) == pictures
    fuzz(read, damaged([make()], PIECES))
