"""Read a tar as a stream, with bounds on everything that its headers claim."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from mllama_cli.core.errors import ImageError

MAX_HEADER_BYTES = 2**20
"""Longest extended header, which holds a name."""
MAX_NAME_LENGTH = 4096
"""Characters of a member's name: as many as paths on a disk have bytes."""
MAX_EXPANSION = 50
"""How many times its size a shard may unpack to, beyond its first FREE_BYTES: pictures are compressed already."""
FREE_BYTES = 2**28

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 2**20
_LONG_NAME, _PAX, _GLOBAL_PAX = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE
_SKIPPED_HEADERS = (tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE, _GLOBAL_PAX)


class DamagedShardError(ImageError):
    """A shard that ends too early or is damaged from some point on. ``cut`` is the member that it breaks off in."""

    def __init__(self, message: str, cut: str = "") -> None:
        super().__init__(message, "Make it again, or download it again.")
        self.cut = cut


def require_little(unpacked: int, packed: int) -> None:
    """Raise DamagedShardError if so many bytes are too many to be in so few."""
    if unpacked > FREE_BYTES + MAX_EXPANSION * packed:
        raise DamagedShardError(f"is damaged: it unpacks to more than {MAX_EXPANSION} times its size")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar. ``data`` is None if it was not read."""

    name: str
    size: int
    data: bytes | None


def tar_members(stream: BinaryIO, limit: Callable[[str], int]) -> Iterator[TarMember]:
    """Yield the regular files of an uncompressed tar, in order; others are left out.

    Args:
        limit: the most bytes to read of the member of that name; one that is larger is skipped.

    Raises DamagedShardError where the archive is damaged or breaks off.
    """
    name, pax = "", dict[str, str]()
    while True:
        block = _read(stream, _BLOCK)
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if block == bytes(_BLOCK):
                return
            short = len(block) < _BLOCK
            raise DamagedShardError(
                "is cut off: its end mark is missing" if short else f"is damaged: {error}"
            ) from None
        if member.size < 0:
            raise DamagedShardError(f"is damaged: a member claims to have {member.size} bytes")
        if member.type in (_LONG_NAME, _PAX, *_SKIPPED_HEADERS):
            if member.size > MAX_HEADER_BYTES:
                raise DamagedShardError(f"is damaged: a header claims to have {member.size} bytes")
            data = _content(stream, member.size, "")
            if member.type == _LONG_NAME:
                name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif member.type == _PAX:
                pax = _pax_records(data)
            continue
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise DamagedShardError("has a sparse file, which cannot be read")
        name, size = pax.get("path", name or member.name), _size(pax, member.size)
        if len(name) > MAX_NAME_LENGTH:
            raise DamagedShardError(f"is damaged: a name has {len(name):,} characters")
        if member.isreg():
            if size <= limit(name):
                yield TarMember(name, size, _content(stream, size, name))
            else:
                _skip(stream, size, name)
                yield TarMember(name, size, None)
        elif member.type not in tarfile.SUPPORTED_TYPES:
            _skip(stream, size, name)
        name, pax = "", {}


def _size(pax: dict[str, str], size: int) -> int:
    text = pax.get("size", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else size


def _content(stream: BinaryIO, size: int, name: str) -> bytes:
    data = _read(stream, size)
    if len(data) < size or len(_read(stream, -size % _BLOCK)) < -size % _BLOCK:
        raise DamagedShardError("is cut off", name)
    return data


def _skip(stream: BinaryIO, size: int, name: str) -> None:
    left = size + -size % _BLOCK
    while left:
        data = stream.read(min(left, _PIECE))
        if not data:
            raise DamagedShardError("is cut off", name)
        left -= len(data)


def _read(stream: BinaryIO, size: int) -> bytes:
    """Return ``size`` bytes, or fewer at the end of the stream."""
    data = stream.read(size)
    if len(data) == size or not data:
        return data
    pieces = [data]
    left = size - len(data)
    while left and (data := stream.read(left)):
        pieces.append(data)
        left -= len(data)
    return b"".join(pieces)


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the records of an extended header: each is its length, a blank, KEY=VALUE and a line end."""
    records, start = dict[str, str](), 0
    while start < len(data):
        digits, blank, _ = data[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[start + len(digits) + 1 : start + length - 1].partition(b"=")
        if not blank or not equals or not len(digits) < length <= len(data) - start:
            raise DamagedShardError("is damaged: an extended header is not valid")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        start += length
    return records
