"""Which pictures are meant: files, folders, globs and lists, in natural order, each once."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from mllama_cli.core.errors import ImageNotFoundError, UsageError
from mllama_cli.core.filetypes import IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file. ``key`` is its path below the folder that was named: what shards are cut by, as the same folder
    may lie elsewhere on another machine."""

    path: str
    key: str

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]


@dataclass(frozen=True)
class Listing:
    """Pictures in order, and folders below the named ones that could not be listed, each with the reason."""

    pictures: list[Picture]
    unreadable: list[tuple[str, str]]


def find_pictures(
    paths: Sequence[str], *, listed: Iterable[str] = (), recursive: bool = False, pattern: str | None = None
) -> Listing:
    """All pictures of ``paths`` (files, folders, glob patterns) and of a list of files, in the order they were named.

    Folders give their picture files, by suffix, naturally sorted; hidden files and folders are left out, and with
    ``recursive`` a folder that a link leads back to is entered once. ``pattern`` keeps the files in folders whose name
    matches. A file that is named is taken whatever it is called, and need not exist: what is missing is found out when
    it is its turn, so that one bad line does not stop a list.

    Raises:
        ImageNotFoundError: a path that does not exist, or a glob that matches nothing.
        UsageError: no pictures at all.
    """
    search = _Search(recursive, pattern)
    found: dict[str, Picture] = {}
    for path in paths:
        for picture in search.named(path):
            found.setdefault(_same(picture.path), picture)
    for path in listed:
        for picture in search.below(path) if os.path.isdir(path) else [Picture(path, path)]:
            found.setdefault(_same(picture.path), picture)
    if not found and not search.unreadable:
        where = ", ".join(paths) or "the list"
        hint = "" if recursive or not paths else " -r looks into folders below."
        raise UsageError(f"There are no pictures in {where}", f"Pictures are files such as .jpg and .png.{hint}")
    return Listing(list(found.values()), search.unreadable)


def shard_of(pictures: Sequence[Picture], index: int, count: int) -> list[Picture]:
    """The ``index``-th (from 1) of ``count`` disjoint parts, by a hash of each picture's key: stable when files come
    and go, and the same on every machine."""
    return [picture for picture in pictures if _hash(picture.key) % count == index - 1]


def read_list(text: str, *, nul: bool = False) -> list[str]:
    """The paths in a list: one a line, or each ended by NUL. Empty ones are left out."""
    lines = text.split("\0") if nul else text.splitlines()
    return [line for line in lines if line.strip()]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts 2 before 10, upper case beside lower.

    >>> sorted(["b10.png", "B9.png", "b9.jpg", "a.png"], key=natural_key)
    ['a.png', 'b9.jpg', 'B9.png', 'b10.png']
    """
    pieces = re.split(r"(\d+)", name.casefold())
    return tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece)


class _Search:
    def __init__(self, recursive: bool, pattern: str | None) -> None:
        self.recursive, self.pattern = recursive, pattern
        self.unreadable: list[tuple[str, str]] = []

    def named(self, path: str) -> Iterator[Picture]:
        expanded = os.path.expanduser(path)
        if os.path.isdir(expanded):
            yield from self.below(expanded)
        elif os.path.lexists(expanded):
            yield Picture(expanded, os.path.basename(expanded))
        elif glob.has_magic(expanded):
            matches = sorted(glob.glob(expanded, recursive=True), key=natural_key)
            if not matches:
                raise ImageNotFoundError(f"{path} matches nothing", "Check the pattern.")
            for match in matches:
                if os.path.isdir(match):
                    yield from self.below(match)
                elif _is_picture(match):
                    yield Picture(match, match)
        else:
            raise ImageNotFoundError(f"no such picture or folder: {path}", "Check the path.")

    def below(self, folder: str) -> Iterator[Picture]:
        try:
            yield from self._walk(folder, "", set())
        except OSError as error:
            raise UsageError(f"{folder} cannot be listed: {error.strerror}", "Check its permissions.") from error

    def _walk(self, folder: str, below: str, seen: set[tuple[int, int]]) -> Iterator[Picture]:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            return
        seen.add((status.st_dev, status.st_ino))
        files, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif _is_picture(entry.name) and (self.pattern is None or fnmatch(entry.name, self.pattern)):
                    files.append(entry.name)
        for name in sorted(files, key=natural_key):
            yield Picture(_join(folder, name), below + name)
        for name in sorted(folders, key=natural_key) if self.recursive else ():
            inner = _join(folder, name)
            try:
                yield from self._walk(inner, f"{below}{name}/", seen)
            except OSError as error:
                self.unreadable.append((inner, error.strerror or str(error)))


def _join(folder: str, name: str) -> str:
    return name if folder == os.curdir else os.path.join(folder, name)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _same(path: str) -> str:
    return os.path.normpath(os.path.abspath(path))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
