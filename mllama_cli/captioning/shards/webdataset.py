"""Read the samples of a webdataset tar: neighbouring members that differ only in their extension."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from mllama_cli.captioning.shards.entry import ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.tar import DamagedShardError, TarMember, require_little, tar_members
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.core.filetypes import IMAGE_SUFFIXES
from mllama_cli.processing.limits import DEFAULT_LIMITS, too_many_bytes
from mllama_cli.system.json_file import parse_json

MAX_TEXT_BYTES = 2**20
"""Longest .txt or .json of a sample."""

_MAX_LISTED = 20

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def read_tar(stream: BinaryIO, shard: Shard, options: ReadOptions) -> Iterator[ShardImage]:
    """Yield the sample of each key, also one without a picture, which then holds the reason.

    Raises DamagedShardError where the archive breaks off, after what precedes.
    """
    key, sample = "", _Sample(options)

    def limit(name: str) -> int:
        begun, extension = split_key(name)
        return (sample if begun == key else _Sample(options)).limit(extension)

    try:
        for member in tar_members(_unpacked(stream, shard), limit):
            following = split_key(member.name)[0]
            if following != key and sample.name:
                yield sample.entry(shard, key)
                sample = _Sample(options)
            key = following
            if key.rpartition("/")[2]:
                sample.add(member)
    except (EOFError, zlib.error, gzip.BadGzipFile, DamagedShardError) as error:
        damage = error if isinstance(error, DamagedShardError) else DamagedShardError(f"is cut off or damaged: {error}")
        cut = split_key(damage.cut)[0]
        if sample.name and (cut != key or sample.picture is not None):
            yield sample.entry(shard, key)
            cut = cut if cut != key else ""
        raise DamagedShardError(damage.message, cut) from None
    if sample.name:
        yield sample.entry(shard, key)


def split_key(name: str) -> tuple[str, str]:
    """Return a member's key and extension: all before and after the first dot of the file's name.

    >>> split_key("train/00012.seg.png")
    ('train/00012', 'seg.png')
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


class _Sample:
    """The members of one key, of which the first picture and texts are kept."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self.name = ""
        self.picture: TarMember | None = None
        self._texts: dict[str, TarMember] = {}
        self._extensions: list[str] = []

    def limit(self, extension: str) -> int:
        """Return the most bytes to read of a further member; -1 for one that is not needed."""
        if self._is_picture(extension):
            return DEFAULT_LIMITS.max_bytes if self.picture is None else -1
        return MAX_TEXT_BYTES if self._is_text(extension) and extension not in self._texts else -1

    def add(self, member: TarMember) -> None:
        extension = split_key(member.name)[1]
        self.name = self.name or member.name
        if len(self._extensions) < _MAX_LISTED:
            self._extensions.append(extension)
        if self._is_picture(extension):
            self.picture = self.picture or member
        elif self._is_text(extension):
            self._texts.setdefault(extension, member)

    def entry(self, shard: Shard, key: str) -> ShardImage:
        content: bytes | MllamaError
        if self.picture is None:
            found = ", ".join(sorted(self._extensions))[:100]
            content = ImageError("has no picture", f"The sample has {found}.")
        elif self.picture.data is None:
            content = too_many_bytes(self.picture.name, DEFAULT_LIMITS)
        else:
            content = self.picture.data
        name = self.name if self.picture is None else self.picture.name
        texts: dict[str, Any] = {
            each: _text(each, self._texts[each]) for each in ("txt", "json") if each in self._texts
        }
        return ShardImage(f"{shard.path}/{name}", key, shard, content, texts)

    def _is_picture(self, extension: str) -> bool:
        if self._options.image_column is not None:
            return extension == self._options.image_column.lower().removeprefix(".")
        return f".{extension}" in IMAGE_SUFFIXES

    def _is_text(self, extension: str) -> bool:
        return self._options.texts and extension in ("txt", "json")


class _Unpacked:
    """A gzip stream that does not unpack to more than an archive of pictures does."""

    def __init__(self, stream: BinaryIO) -> None:
        self._packed, self._stream, self._given = stream, gzip.GzipFile(fileobj=stream), 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._given += len(data)
        require_little(self._given, self._packed.tell())
        return data


def _unpacked(stream: BinaryIO, shard: Shard) -> BinaryIO:
    return stream if shard.path.lower().endswith(".tar") else cast(BinaryIO, _Unpacked(stream))


def _text(extension: str, member: TarMember) -> Any:
    """Return a text, or the value of a JSON file, or the error that it is."""
    if member.data is None:
        return ImageError(f"has a {extension} of {member.size} bytes, which is too long for a prompt")
    if extension == "txt":
        return member.data.decode("utf-8", "replace").strip()
    try:
        return parse_json(member.data, member.name, error=ImageError)
    except ImageError as error:
        return error


def as_json_text(values: dict[str, Any]) -> bytes:
    """Return the .json of a sample."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")
