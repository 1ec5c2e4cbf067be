"""Caption files next to their images: photo.txt next to photo.jpg."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache

from mllama_cli.captioning.caption_text import decoded, joined, lenient
from mllama_cli.captioning.destinations import Lease, LeaseRefusedError, unwritable
from mllama_cli.captioning.journal import CaptionJournal, JournalEntry, digest
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.core.caption_events import CaptionRecord, Existing
from mllama_cli.core.errors import CaptionError
from mllama_cli.core.events import FinishReason
from mllama_cli.system.locks import Lock, remove_abandoned_locks
from mllama_cli.system.safe_files import read_regular

LOCKED_BY_ANOTHER_RUN = "another run is captioning it"
CAPTIONED_MEANWHILE = "captioned meanwhile"

MAX_CAPTION_BYTES = 2**20
"""Largest caption file that is quoted or added to."""


class SidecarPaths:
    """The caption file of each image: ``photo.txt`` for ``photo.jpg``. It is made when it is asked for.

    Where several images would share one file (photo.jpg and photo.png; on some disks Photo.jpg too), each caption file
    starts with the image's full name: ``photo.jpg.txt``, ``photo.png.txt``. The second page of ``scan.pdf`` has
    ``scan.p2.txt``.

    Attributes:
        collided: the paths of the images whose names collided.
    """

    def __init__(self, entries: Sequence[ImageEntry], extension: str) -> None:
        self._extension = extension
        self.collided: set[str] = set()
        # A full name may collide in turn: photo.jpg.txt is also the caption file of photo.jpg.png.
        while shared := self._shared(entries) - self.collided:
            self.collided |= shared

    def __call__(self, entry: ImageEntry) -> str:
        name = entry.file if entry.path in self.collided else os.path.splitext(entry.file)[0]
        return f"{name}.p{entry.page}{self._extension}" if entry.page else name + self._extension

    def _shared(self, entries: Sequence[ImageEntry]) -> set[str]:
        """Return the paths of the images that share a caption file with another."""
        once: set[int] = set()  # of a million names only hashes: should two be equal, nothing but the name is longer
        again: set[int] = set()
        for entry in entries:
            name = self._hash(entry)
            (again if name in once else once).add(name)
        return {entry.path for entry in entries if self._hash(entry) in again} if again else set()

    def _hash(self, entry: ImageEntry) -> int:
        return hash(self(entry).casefold())


class Sidecars:
    """Text files, UTF-8 with a newline at the end if they are new. An empty file counts as none.

    What is there is kept byte for byte when a caption is added to it. A file that cannot be decoded, or that is a link,
    fails its image instead.

    Args:
        path_of: returns the caption file of an image (``SidecarPaths``).
        existing: what to do with existing captions.
        separator: between an old caption and a new one.
        journal: required unless ``existing`` is skip, where the files themselves show what is done.
    """

    def __init__(
        self,
        path_of: Callable[[ImageEntry], str],
        *,
        existing: Existing = "skip",
        separator: str = " ",
        journal: CaptionJournal | None = None,
    ) -> None:
        if existing != "skip" and journal is None:
            raise ValueError(f"{existing!r} needs a journal")
        self._path_of = path_of
        self._mode = existing
        self._separator = separator
        self._journal = journal
        # Overwriting twice loses nothing, so only what is added to counts as done after the end.
        self.just_finished = journal.begin(keep=self._adds) if journal else False
        self._journaled = dict(journal.entries()) if journal else {}
        self._locked_elsewhere: list[ImageEntry] = []
        self._folders: set[str] = set()

    def is_done(self, entry: ImageEntry) -> bool:
        path = self._path_of(entry)
        self._folders.add(os.path.dirname(path))
        if self._mode == "skip":
            with suppress(OSError):
                return os.stat(path).st_size > 0
            return False
        return self._is_applied(entry, self._journaled.get(_key(entry)))

    def acquire(self, entry: ImageEntry) -> Lease:
        path = self._path_of(entry)
        try:
            lock = Lock.acquire_for(path)
        except OSError as error:
            raise unwritable(path, error) from error
        if lock is None:
            self._locked_elsewhere.append(entry)
            raise LeaseRefusedError(LOCKED_BY_ANOTHER_RUN)
        try:
            # Another run may have captioned it since ``is_done`` looked.
            if self._finished_meanwhile(lock, entry):
                raise LeaseRefusedError(CAPTIONED_MEANWHILE)
            if self._adds:
                decoded(self._before(entry), path)  # fail before the model is asked
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError):
                raise unwritable(path, error) from error
            raise
        return _SidecarLease(self, lock, entry, path)

    def existing(self, entry: ImageEntry) -> str:
        path = self._path_of(entry)
        try:
            return lenient(read_regular(path, MAX_CAPTION_BYTES, follow=True))
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise CaptionError(f"{path} cannot be read: {error.strerror}", "Move it away.") from error

    def finish(self, *, exhausted: bool, complete: bool) -> None:
        if self._journal is not None:
            if complete and all(
                self._is_applied(entry, self._journal.get(_key(entry))) for entry in self._locked_elsewhere
            ):
                self._journal.finish()
            self._journal.close()
        for folder in self._folders:
            remove_abandoned_locks(folder)

    def write(self, lock: Lock, entry: ImageEntry, caption: str) -> None:
        """Change the caption file as ``existing`` says. Raise CaptionError or OSError if it cannot be written."""
        if self._journal is not None:
            self._journal.add(_key(entry), JournalEntry(stamp(entry), digest(self._before(entry)), caption))
        self._apply(lock, entry, caption)

    @property
    def _adds(self) -> bool:
        return self._mode in ("append", "prepend")

    def _before(self, entry: ImageEntry) -> bytes:
        """Return what is in the caption file; nothing for one that is unreadable and may be overwritten."""
        path = self._path_of(entry)
        try:
            return read_regular(path, MAX_CAPTION_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            if not self._adds:
                return b""
            raise unwritable(path, error) from error

    def _apply(self, lock: Lock, entry: ImageEntry, caption: str) -> None:
        path = self._path_of(entry)
        new = caption.rstrip("\n")
        data = (new + "\n").encode("utf-8", "replace")
        if self._adds:
            data = joined(self._before(entry), new, self._separator, path, prepend=self._mode == "prepend")
        with lock.replacing(path) as file:
            file.write(data)

    def _finished_meanwhile(self, lock: Lock, entry: ImageEntry) -> bool:
        """Apply a change that a killed run only journaled, and return whether the caption exists by now."""
        if self._journal is None:
            return self.is_done(entry)
        change = self._journal.get(_key(entry))
        if change is None or change.stamp != stamp(entry):
            return False
        if not self._is_applied(entry, change):
            self._apply(lock, entry, change.caption)
        return True

    def _is_applied(self, entry: ImageEntry, change: JournalEntry | None) -> bool:
        if change is None or change.stamp != stamp(entry):
            return False
        try:
            return change.before != digest(self._before(entry))
        except CaptionError:  # ``acquire`` reports it
            return False


class _SidecarLease:
    def __init__(self, sidecars: Sidecars, lock: Lock, entry: ImageEntry, path: str) -> None:
        self._sidecars = sidecars
        self._lock = lock
        self._entry = entry
        self._path = path

    def write(self, record: CaptionRecord, finish_reason: FinishReason = "stop") -> str:
        try:
            self._sidecars.write(self._lock, self._entry, record.caption)
        except OSError as error:
            raise unwritable(self._path, error) from error
        finally:
            self._lock.release()
        return self._path

    def release(self, record: CaptionRecord | None = None) -> None:
        self._lock.release()


def stamp(entry: ImageEntry) -> str:
    """Identify an image's content without reading it: its size and modification time. Empty if it cannot be found."""
    try:
        status = os.stat(entry.file)
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def _key(entry: ImageEntry) -> str:
    path = os.path.join(_real(entry.folder), entry.name)
    # SQLite's text must be UTF-8, a file name may contain any bytes.
    return path.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
