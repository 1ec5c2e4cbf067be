"""Read the samples of a webdataset tar: neighbouring members that differ only in their extension."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from mllama_cli.captioning.shards.entry import ReadOptions, Shard, ShardImage
from mllama_cli.captioning.shards.tar import DamagedShardError, TarMember, tar_members
from mllama_cli.core.errors import ImageError, MllamaError
from mllama_cli.core.filetypes import IMAGE_SUFFIXES
from mllama_cli.processing.limits import DEFAULT_LIMITS, too_many_bytes
from mllama_cli.system.json_file import parse_json

MAX_TEXT_BYTES = 2**20
"""Longest .txt or .json of a sample."""

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def read_tar(stream: BinaryIO, shard: Shard, options: ReadOptions) -> Iterator[ShardImage]:
    """Yield the sample of each key, also one without a picture, which then holds the reason.

    Raises DamagedShardError where the archive breaks off, after what precedes.
    """
    members = tar_members(_decompressed(stream, shard), lambda name: _limit(name, options))
    key, sample = "", list[TarMember]()
    try:
        for member in members:
            following = split_key(member.name)[0]
            if following != key and sample:
                yield _entry(shard, key, sample, options)
                sample = []
            key = following
            if key.rpartition("/")[2]:
                sample.append(member)
    except (EOFError, zlib.error, gzip.BadGzipFile, DamagedShardError) as error:
        damage = error if isinstance(error, DamagedShardError) else DamagedShardError(f"is cut off or damaged: {error}")
        cut = split_key(damage.cut)[0]
        if sample and (cut != key or _picture(sample, options) is not None):
            yield _entry(shard, key, sample, options)
            cut = cut if cut != key else ""
        raise DamagedShardError(damage.message, cut) from None
    if sample:
        yield _entry(shard, key, sample, options)


def split_key(name: str) -> tuple[str, str]:
    """Return a member's key and extension: all before and after the first dot of the file's name.

    >>> split_key("train/00012.seg.png")
    ('train/00012', 'seg.png')
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _decompressed(stream: BinaryIO, shard: Shard) -> BinaryIO:
    return stream if shard.path.lower().endswith(".tar") else cast(BinaryIO, gzip.GzipFile(fileobj=stream))


def _limit(name: str, options: ReadOptions) -> int:
    extension = split_key(name)[1]
    if _is_picture(extension, options):
        return DEFAULT_LIMITS.max_bytes
    return MAX_TEXT_BYTES if options.texts and extension in ("txt", "json") else -1


def _is_picture(extension: str, options: ReadOptions) -> bool:
    if options.image_column is not None:
        return extension == options.image_column.lower().removeprefix(".")
    return f".{extension}" in IMAGE_SUFFIXES


def _picture(sample: list[TarMember], options: ReadOptions) -> TarMember | None:
    return next((member for member in sample if _is_picture(split_key(member.name)[1], options)), None)


def _entry(shard: Shard, key: str, sample: list[TarMember], options: ReadOptions) -> ShardImage:
    by_extension = {split_key(member.name)[1]: member for member in sample}
    picture = _picture(sample, options)
    content: bytes | MllamaError
    if picture is None:
        found = ", ".join(sorted(by_extension))[:100]
        content = ImageError("has no picture", f"The sample has {found}.")
    elif picture.data is None:
        content = too_many_bytes(picture.name, DEFAULT_LIMITS)
    else:
        content = picture.data
    name = picture.name if picture is not None else sample[0].name
    return ShardImage(f"{shard.path}/{name}", key, shard, content, _texts(by_extension) if options.texts else {})


def _texts(members: dict[str, TarMember]) -> dict[str, Any]:
    texts = dict[str, Any]()
    for name in ("txt", "json"):
        if name in members:
            texts[name] = _text(name, members[name])
    return texts


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
