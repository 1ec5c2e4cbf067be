"""Caption files next to their images: photo.txt next to photo.jpg."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
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


def sidecar_paths(entries: Sequence[ImageEntry], extension: str) -> tuple[Mapping[str, str], int]:
    """Return the caption file of each image, by the image's path, and the number of images whose names collided.

    ``photo.jpg`` has ``photo.txt``. Where several images would share one file (photo.jpg and photo.png; on some disks
    Photo.jpg too), each caption file starts with the image's full name: ``photo.jpg.txt``, ``photo.png.txt``. The
    second page of ``scan.pdf`` has ``scan.p2.txt``.
    """
    full: set[str] = set()
    while True:
        users: defaultdict[str, list[str]] = defaultdict(list)
        for entry in entries:
            users[_sidecar(entry, extension, full=entry.path in full).casefold()].append(entry.path)
        # A full name may collide in turn: photo.jpg.txt is also the caption file of photo.jpg.png.
        shared = {path for paths in users.values() if len(paths) > 1 for path in paths} - full
        if not shared:
            break
        full |= shared
    return {each.path: _sidecar(each, extension, full=each.path in full) for each in entries}, len(full)


def _sidecar(entry: ImageEntry, extension: str, *, full: bool) -> str:
    name = entry.file if full else os.path.splitext(entry.file)[0]
    return f"{name}.p{entry.page}{extension}" if entry.page else name + extension


class Sidecars:
    """Text files, UTF-8 with a newline at the end if they are new. An empty file counts as none.

    What is there is kept byte for byte when a caption is added to it. A file that cannot be decoded, or that is a link,
    fails its image instead.

    Args:
        paths: the caption file of each image's path (``sidecar_paths``).
        existing: what to do with existing captions.
        separator: between an old caption and a new one.
        journal: required unless ``existing`` is skip, where the files themselves show what is done.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        *,
        existing: Existing = "skip",
        separator: str = " ",
        journal: CaptionJournal | None = None,
    ) -> None:
        if existing != "skip" and journal is None:
            raise ValueError(f"{existing!r} needs a journal")
        self._paths = paths
        self._mode = existing
        self._separator = separator
        self._journal = journal
        # Overwriting twice loses nothing, so only what is added to counts as done after the end.
        self.just_finished = journal.begin(keep=self._adds) if journal else False
        self._journaled = dict(journal.entries()) if journal else {}
        self._locked_elsewhere: list[ImageEntry] = []

    def is_done(self, entry: ImageEntry) -> bool:
        if self._mode == "skip":
            with suppress(OSError):
                return os.stat(self._paths[entry.path]).st_size > 0
            return False
        return self._is_applied(entry, self._journaled.get(_key(entry)))

    def acquire(self, entry: ImageEntry) -> Lease:
        lock = Lock.acquire_for(self._paths[entry.path])
        if lock is None:
            self._locked_elsewhere.append(entry)
            raise LeaseRefusedError(LOCKED_BY_ANOTHER_RUN)
        try:
            # Another run may have captioned it since ``is_done`` looked.
            if self._finished_meanwhile(lock, entry):
                raise LeaseRefusedError(CAPTIONED_MEANWHILE)
            if self._adds:
                decoded(self._before(entry), self._paths[entry.path])  # fail before the model is asked
        except BaseException:
            lock.release()
            raise
        return _SidecarLease(self, lock, entry, self._paths[entry.path])

    def existing(self, entry: ImageEntry) -> str:
        path = self._paths[entry.path]
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
        for folder in {os.path.dirname(path) for path in self._paths.values()}:
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
        path = self._paths[entry.path]
        try:
            return read_regular(path, MAX_CAPTION_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            if not self._adds:
                return b""
            raise unwritable(path, error) from error

    def _apply(self, lock: Lock, entry: ImageEntry, caption: str) -> None:
        path = self._paths[entry.path]
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
