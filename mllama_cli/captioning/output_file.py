"""Write all captions to one JSON Lines or CSV file, line by line, so that a stopped run can be resumed."""

import os
import time
from contextlib import suppress
from typing import IO

from mllama_cli.captioning.destinations import CaptionDestination, Lease, unwritable
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.locks import CaptionLock
from mllama_cli.captioning.records import Format, encode, header, records
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import CaptionError, UsageError

FILE_START = {"jsonl": b'{"path": ', "csv": header("csv")}
"""The first bytes of the files that we write."""

SYNC_LINES = 32
SYNC_SECONDS = 2.0
"""Lines are written at once, and synced after this many lines or seconds: the most that a power cut loses."""


class OutputFile:
    """``FILE.jsonl`` or ``FILE.csv``, locked by one run at a time.

    Images that have a caption in the file are done, and lines that report failures are replaced by the result of a new
    try. With ``overwrite`` a new file is written next to the old one and replaces it at the end; its name contains
    ``run``, a digest of the command, so that the same command resumes it. ``texts`` reads the caption files that
    prompts quote.

    Raises:
        UsageError: another file extension, or a file that does not hold captions.
        CaptionError: the file cannot be written, or another run is writing it.
    """

    def __init__(
        self, path: str, *, overwrite: bool = False, run: str = "", texts: CaptionDestination | None = None
    ) -> None:
        self.path = path
        self.form = format_of(path)
        self._texts = texts
        self._overwrite = overwrite
        folder, name = os.path.split(path)
        self._partial = os.path.join(folder, f".{name}.{run[:8]}.part") if overwrite else path
        self._unsynced, self._synced = 0, time.monotonic()
        try:
            lock = CaptionLock.acquire(path)
            if lock is None:
                raise CaptionError(f"Another run is writing {path}", "Wait for it, or give each run its own --output.")
            self._lock = lock
            try:
                self._done = self._resume()
                self._file: IO[bytes] = open(self._partial, "ab", buffering=0)  # noqa: SIM115 - until ``finish``
                if self._file.tell() == 0:
                    self._append(header(self.form))
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise unwritable(path, error) from error

    def is_done(self, entry: ImageEntry) -> bool:
        return os.path.normpath(entry.path) in self._done

    def acquire(self, entry: ImageEntry) -> Lease:
        return _LineLease(self)

    def existing(self, entry: ImageEntry) -> str:
        return self._texts.existing(entry) if self._texts else ""

    def add(self, record: CaptionRecord) -> None:
        """Append one line. Raise CaptionError if that fails; the file then still ends with a complete line."""
        try:
            self._append(encode(record, self.form))
        except OSError as error:
            raise unwritable(self.path, error) from error

    def finish(self, *, exhausted: bool, complete: bool) -> None:
        if self._file.closed:
            return
        try:
            with self._file:
                os.fsync(self._file.fileno())
            if self._overwrite and exhausted:
                os.replace(self._partial, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            self._lock.release()

    def _append(self, data: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._unsynced += 1
            if self._unsynced >= SYNC_LINES or time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._unsynced, self._synced = 0, time.monotonic()
        except OSError:
            with suppress(OSError):
                self._file.truncate(start)
            raise

    def _resume(self) -> set[str]:
        """Remove an incomplete last line and the lines of failures, and return the paths that are done."""
        done: set[str] = set()
        kept, failed = 0, 0
        try:
            file = open(self._partial, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return done
        with file:
            for raw, values in records(iter(file), self.form):
                kept += len(raw)
                if values is None:
                    self._require_ours(raw, at_start=kept == len(raw))
                elif values.get("error"):
                    failed += 1
                elif isinstance(values.get("path"), str):
                    done.add(os.path.normpath(values["path"]))
            size = file.seek(0, os.SEEK_END)
        if failed:
            self._drop_failures()
        elif kept < size:
            if not kept:  # either a run was killed while writing the first line, or the file is not ours
                with open(self._partial, "rb") as file:
                    begun = file.read(len(FILE_START[self.form]))
                if not FILE_START[self.form].startswith(begun):
                    self._require_ours(begun, at_start=False)
            os.truncate(self._partial, kept)
        return done

    def _require_ours(self, raw: bytes, *, at_start: bool) -> None:
        if self.form == "csv" and at_start and raw == header("csv"):
            return
        raise UsageError(
            f"{self.path} exists and holds something other than captions", "Name another file, or move it away."
        )

    def _drop_failures(self) -> None:
        new = f"{self._partial}.new"
        with open(self._partial, "rb") as old, open(new, "wb") as file:
            for raw, values in records(iter(old), self.form):
                if values is None or not values.get("error"):
                    file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._partial)


class _LineLease:
    def __init__(self, file: OutputFile) -> None:
        self._file = file

    def write(self, record: CaptionRecord) -> str:
        self._file.add(record)
        return self._file.path

    def release(self, record: CaptionRecord | None = None) -> None:
        if record is not None:
            self._file.add(record)


def format_of(path: str) -> Format:
    """Return the format of the file's extension. Raise UsageError for another extension."""
    ending = os.path.splitext(path)[1].lower()
    if ending in (".jsonl", ".ndjson"):
        return "jsonl"
    if ending == ".csv":
        return "csv"
    raise UsageError(f"--output {path}: captions are written as .jsonl or .csv", "Or - for JSON Lines on stdout.")
