"""Find the shards that are named: files, folders, patterns, addresses and braces such as {00000..00999}."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from mllama_cli.captioning.listing import ImageEntry, shard_of
from mllama_cli.captioning.shards.entry import Shard, ShardForm
from mllama_cli.captioning.shards.store import scheme_of
from mllama_cli.captioning.shards.stores import store_of
from mllama_cli.captioning.shards.webdataset import TAR_SUFFIXES
from mllama_cli.core.errors import ImageNotFoundError, UsageError
from mllama_cli.core.text import natural_key, shown

PARQUET_SUFFIXES = (".parquet", ".pq")
MAX_EXPANDED = 10_000_000
"""Most names that braces may stand for."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


def looks_like_shards(path: str) -> bool:
    """Return whether a path is named like a shard, or like several in braces."""
    return path.lower().rstrip("/").endswith((*TAR_SUFFIXES, *PARQUET_SUFFIXES))


def find_shards(paths: Sequence[str]) -> list[Shard]:
    """Return all shards in ``paths``, in natural order, each once.

    Raises:
        ImageNotFoundError: a pattern matches nothing, or a folder has no shard.
        UsageError: something else than shards is named, or a store cannot be used.
    """
    found: dict[str, None] = {}
    for path in paths:
        for each in expand_braces(path):
            found |= dict.fromkeys(_named(each))
    return _with_names(list(found))


def part_of(shards: Sequence[Shard], index: int, count: int) -> list[Shard]:
    """Return the ``index``-th (from 1) of ``count`` disjoint parts of whole shards, the same on every machine."""
    by_name = {shard.name: shard for shard in shards}
    kept = shard_of([ImageEntry(shard.path, shard.name) for shard in shards], index, count)
    return [by_name[entry.key] for entry in kept]


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield what braces stand for, as a shell would; other braces are kept. Raise UsageError for too many.

    >>> list(expand_braces("d/{08..10}.tar")), list(expand_braces("{a,b}.tar"))
    (['d/08.tar', 'd/09.tar', 'd/10.tar'], ['a.tar', 'b.tar'])
    """
    found = next((each for each in _BRACES.finditer(pattern) if "," in each[1] or _RANGE.fullmatch(each[1])), None)
    if found is None:
        yield pattern
        return
    for choice in _choices(found[1]):
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _choices(inside: str) -> Iterator[str]:
    if (numbers := _RANGE.fullmatch(inside)) is None:
        yield from inside.split(",")
        return
    first, last = int(numbers[1]), int(numbers[2])
    if abs(last - first) >= MAX_EXPANDED:
        raise UsageError(f"{{{inside}}} stands for more than {MAX_EXPANDED:,} names")
    padded = any(number.startswith("0") and len(number) > 1 for number in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    step = 1 if last >= first else -1
    for number in range(first, last + step, step):
        yield f"{number:0{width}d}"


def _named(path: str) -> list[str]:
    store = store_of(path)
    found = store.found(path)
    if found is None:
        if not looks_like_shards(path):
            if not store.exists(path):
                raise ImageNotFoundError(f"no such file or folder: {path}", "Check the path.")
            raise UsageError(
                f"{shown(path)} is not a shard", "With --to, name .tar and .parquet files, or folders of them."
            )
        if not scheme_of(path) and not store.exists(path):
            raise ImageNotFoundError(f"no such file: {path}", "Check the path.")
        return [path]
    shards = sorted(filter(looks_like_shards, found), key=natural_key)
    if not shards:
        raise ImageNotFoundError(f"There are no shards in {path}", "They are .tar and .parquet files.")
    return shards


def _with_names(paths: Sequence[str]) -> list[Shard]:
    """Name shards by their file's stem; with their folders, or their suffix too, where that is not unique."""
    stems = [_stem(os.path.basename(path)) for path in paths]
    if len(set(stems)) < len(stems):
        first, *others = [os.path.dirname(path).split("/") for path in paths]
        shared = 0
        while all(folders[: shared + 1] == first[: shared + 1] for folders in others) and shared < len(first):
            shared += 1
        inside = ["/".join(path.split("/")[shared:]) for path in paths]
        stems = [_stem(name) for name in inside]
        twice = {stem for stem, count in Counter(stems).items() if count > 1}
        stems = [name if stem in twice else stem for stem, name in zip(stems, inside, strict=True)]
    return [Shard(path, name, _form(path)) for path, name in zip(paths, stems, strict=True)]


def _form(path: str) -> ShardForm:
    return "parquet" if path.lower().endswith(PARQUET_SUFFIXES) else "tar"


def _stem(name: str) -> str:
    suffix = next((each for each in (*TAR_SUFFIXES, *PARQUET_SUFFIXES) if name.lower().endswith(each)), "")
    return name[: len(name) - len(suffix)]
