"""Find the images to caption in files, folders, globs and lists: in natural order, each once."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from mllama_cli.captioning.pdf_pages import PageCounter, has_pdf_name
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError, ImageNotFoundError, UsageError
from mllama_cli.core.text import natural_key
from mllama_cli.processing.documents import split_source
from mllama_cli.processing.sources import is_image_file
from mllama_cli.system.files import expanded, is_folder
from mllama_cli.system.patterns import has_image_name, matches

_TEXT_SUFFIXES = (".txt", ".caption", ".tags", ".json", ".jsonl", ".csv", ".tsv", ".md", ".xml", ".yaml", ".yml")
"""Files that lie next to images by the thousand, which are not opened to see whether they are images."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image file, or a page of a PDF document, whose ``path`` is like ``scan.pdf#2``.

    ``key`` is the path relative to the folder that the user named. Shards are made by key, since the same folder may
    have another path on another machine.
    """

    path: str
    key: str
    page: int = field(default=0, kw_only=True)
    """From 1; 0 for an image file."""

    @property
    def file(self) -> str:
        return self.path.removesuffix(f"#{self.page}") if self.page else self.path

    def read(self) -> ImagePart | None:
        """Return the image if it is not a file of its own. Raise MllamaError."""
        return None

    def variable(self, name: str) -> str:
        """Return what a variable of a sample in a shard stands for. Raise ImageError."""
        raise ImageError(f"has no {name}, which the prompt quotes", "Only samples of shards have texts of their own.")

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def stem(self) -> str:
        return os.path.splitext(os.path.basename(self.file))[0]


@dataclass(frozen=True)
class CaptionPlan:
    """A run's images, known before a model is loaded.

    Of ``total``, ``pending`` need a caption, and ``unreadable`` folders could not be listed, each with the reason.
    """

    total: int
    pending: list[ImageEntry]
    unreadable: list[tuple[str, str]]

    @property
    def skipped(self) -> int:
        return self.total - len(self.pending) - len(self.unreadable)


@dataclass(frozen=True)
class Listing:
    """Images in order, and subfolders that could not be listed, each with the reason.

    ``left_out`` are the files in folders that are images, but whose names do not end like one's; ``documents`` are the
    PDF documents in folders, which are captioned only if they are named.
    """

    entries: list[ImageEntry]
    unreadable: list[tuple[str, str]]
    left_out: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)

    def plan(self, is_done: Callable[[ImageEntry], bool]) -> CaptionPlan:
        """Return a plan without the images that are done."""
        pending = [entry for entry in self.entries if not is_done(entry)]
        return CaptionPlan(len(self.entries) + len(self.unreadable), pending, self.unreadable)


def find_images(
    paths: Sequence[str], *, listed: Iterable[str] = (), recursive: bool = False, pattern: str | None = None
) -> Listing:
    """Return all images in ``paths`` (files, folders, glob patterns) and in a list of files, in the order given.

    A PDF document that is named, also by a pattern that ends in .pdf, yields its pages, or those after a # of its name.

    Folders yield their image files, by suffix, naturally sorted, without hidden files and folders. With ``recursive``,
    a folder that a link leads back to is visited once. ``pattern`` keeps the files in folders whose name matches. A
    listed file may have any name and need not exist: a missing one fails later, so that one bad line does not stop a
    list.

    Raises:
        ImageNotFoundError: a path does not exist, or a glob matches nothing.
        UsageError: there are no images at all.
    """
    same = _Same()
    found: dict[str, ImageEntry] = {}
    with PageCounter() as counter:
        search = _Search(recursive, pattern, counter)
        for path in paths:
            for entry in search.named(path):
                found.setdefault(same(entry.path), entry)
        for path in listed:
            for entry in search.listed(path):
                found.setdefault(same(entry.path), entry)
    if not found and not search.unreadable:
        where = ", ".join(paths) or "the list"
        hint = "" if recursive or not paths else " -r recurses into subfolders."
        if search.left_out:
            hint += f" {search.left_out[0]} is one by its content: name such files themselves, or rename them."
        if search.documents:
            hint += f" {search.documents[0]} is a PDF document: name it, or add --glob '*.pdf'."
        raise UsageError(f"There are no pictures in {where}", f"Pictures are files such as .jpg and .png.{hint}")
    left_out = [path for path in search.left_out if same(path) not in found]
    return Listing(list(found.values()), search.unreadable, left_out, search.documents)


def shard_of(entries: Sequence[ImageEntry], index: int, count: int) -> list[ImageEntry]:
    """Return the ``index``-th (from 1) of ``count`` disjoint parts, by a hash of each image's key.

    Stable when files come and go, and the same on every machine.
    """
    return [entry for entry in entries if _hash(entry.key) % count == index - 1]


class _Search:
    def __init__(self, recursive: bool, pattern: str | None, counter: PageCounter) -> None:
        self.recursive, self.pattern = recursive, pattern
        self.unreadable: list[tuple[str, str]] = []
        self.left_out: list[str] = []
        self.documents: list[str] = []
        self._counter = counter
        self._with_documents = pattern is not None and has_pdf_name(pattern)

    def named(self, path: str) -> Iterator[ImageEntry]:
        file, selection = split_source(path)
        named = str(expanded(file))
        if is_folder(named) and not selection:
            yield from self.below(named)
        elif os.path.lexists(named):
            yield from self._pages(named, os.path.basename(named), selection)
        elif (found := matches(file)) is not None:
            if not found:
                raise ImageNotFoundError(f"{path} matches nothing", "Check the pattern.")
            for match in found:
                if is_folder(match):
                    yield from self.below(match)
                elif has_image_name(match) or (has_pdf_name(match) and has_pdf_name(file)):
                    yield from self._pages(match, match, selection)
        else:
            raise ImageNotFoundError(f"no such picture or folder: {path}", "Check the path.")

    def listed(self, path: str) -> Iterator[ImageEntry]:
        """Yield the images of a line of a list, whose mistakes do not stop the others."""
        if "\0" in path:
            self.unreadable.append((path, "a path cannot contain a NUL"))
        elif is_folder(path):
            yield from self.below(path)
        else:
            file, selection = split_source(path)
            if not has_pdf_name(file):
                yield ImageEntry(path, path)
                return
            try:
                yield from self._pages(file, file, selection)
            except UsageError as error:
                self.unreadable.append((path, error.message))

    def _pages(self, path: str, key: str, selection: str = "") -> Iterator[ImageEntry]:
        """Yield an image, or the pages of a document. Raise UsageError for a selection that does not fit it."""
        for page in self._counter.pages(path, selection):
            yield ImageEntry(f"{path}#{page}", f"{key}#{page}", page=page) if page else ImageEntry(path, key)

    def below(self, folder: str) -> Iterator[ImageEntry]:
        try:
            yield from self._walk(folder, "", set())
        except OSError as error:
            raise UsageError(f"{folder} cannot be listed: {error.strerror}", "Check its permissions.") from error

    def _walk(self, folder: str, below: str, seen: set[tuple[int, int]]) -> Iterator[ImageEntry]:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            return
        seen.add((status.st_dev, status.st_ino))
        files, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _leads_to_folder(entry):
                    folders.append(entry.name)
                elif self.pattern is not None and not fnmatch(entry.name, self.pattern):
                    continue
                elif has_image_name(entry.name) or (self._with_documents and has_pdf_name(entry.name)):
                    files.append(entry.name)
                elif has_pdf_name(entry.name):
                    self.documents.append(_join(folder, entry.name))
                elif _is_misnamed_image(path := _join(folder, entry.name)):
                    self.left_out.append(path)
        for name in sorted(files, key=natural_key):
            yield from self._pages(_join(folder, name), below + name)
        for name in sorted(folders, key=natural_key) if self.recursive else ():
            inner = _join(folder, name)
            try:
                yield from self._walk(inner, f"{below}{name}/", seen)
            except OSError as error:
                self.unreadable.append((inner, error.strerror or str(error)))


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _join(folder: str, name: str) -> str:
    return name if folder == os.curdir else os.path.join(folder, name)


def _is_misnamed_image(path: str) -> bool:
    return not path.lower().endswith(_TEXT_SUFFIXES) and is_image_file(path)


class _Same:
    """What two paths of the same file have in common, below the folder that is the current one now.

    Mostly that is the path itself, so that a million of them need not be held twice.
    """

    def __init__(self) -> None:
        self._current = os.path.join(os.getcwd(), "")

    def __call__(self, path: str) -> str:
        same = os.path.normpath(path).removeprefix(self._current)
        return path if same == path else same


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
