"""Write all captions to one JSON Lines or CSV file, line by line, so that a stopped run can be resumed."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from mllama_cli.captioning.destinations import CaptionDestination, Lease, unwritable
from mllama_cli.captioning.listing import ImageEntry
from mllama_cli.captioning.records import Format, encode, header, is_cut_record, is_record, records
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import CaptionError, UsageError
from mllama_cli.core.events import FinishReason
from mllama_cli.system.locks import Lock
from mllama_cli.system.safe_files import neighbor_name, open_regular

SYNC_LINES = 32
SYNC_SECONDS = 2.0
"""Lines are written at once, and synced after this many lines or seconds: the most that a power cut loses."""


class OutputFile:
    """``FILE.jsonl`` or ``FILE.csv``, locked by one run at a time.

    Images that have a caption in the file are done, and lines that report failures are replaced by the result of a new
    try. With ``overwrite`` a new file is written next to the old one and replaces it at the end; its name contains
    ``run``, a digest of the command, so that the same command resumes it. Only files of which every line is ours are
    added to or replaced. ``texts`` reads the caption files that prompts quote. ``columns`` are the fields of captions
    that are JSON.

    Raises:
        UsageError: another file extension, or a file that does not hold captions.
        CaptionError: the file cannot be written, or another run is writing it.
    """

    def __init__(
        self,
        path: str,
        *,
        overwrite: bool = False,
        run: str = "",
        texts: CaptionDestination | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        self._columns = columns
        self.form = format_of(path)
        self._texts = texts
        self._overwrite = overwrite
        folder, name = os.path.split(path)
        self._partial = os.path.join(folder, neighbor_name(f".{name}", f".{run[:8]}.part")) if overwrite else path
        self._unsynced, self._synced = 0, time.monotonic()
        try:
            lock = Lock.acquire_for(path)
            if lock is None:
                raise CaptionError(f"Another run is writing {path}", "Wait for it, or give each run its own --output.")
            self._lock = lock
            try:
                if overwrite and os.path.lexists(path):
                    with _opened(path, create=False) as replaced:
                        self._scan(replaced, path)
                self._file = _opened(self._partial)
                self._done = self._resume()
                if self._file.seek(0, os.SEEK_END) == 0:
                    self._append(header(self.form, self._columns))
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
            self._append(encode(record, self.form, self._columns))
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
        done, kept, failed, last = self._scan(self._file, self._partial)
        if failed:
            with _reader(self._file) as old, self._lock.replacing(self._partial) as new:
                for raw, values in records(old, self.form):
                    if values is None or not values.get("error"):
                        new.write(raw if raw.endswith(b"\n") else raw + b"\n")
            self._file.close()
            self._file = _opened(self._partial)
        else:
            self._file.truncate(kept)
            if last and not last.endswith(b"\n"):
                self._append(b"\n")
        return done

    def _scan(self, file: IO[bytes], path: str) -> tuple[set[str], int, int, bytes]:
        """Return the paths that are done, the bytes of complete lines, the number of failures and the last line.

        Raise UsageError if anything in the file is not ours.
        """
        done: set[str] = set()
        kept, failed = 0, 0
        raw = b""
        with _reader(file) as lines:
            for raw, values in records(lines, self.form):
                kept += len(raw)
                if values is None or not is_record(values):
                    if not (self.form == "csv" and kept == len(raw) and raw == header("csv", self._columns)):
                        raise _foreign(path)
                elif values["error"]:
                    failed += 1
                else:
                    done.add(os.path.normpath(values["path"]))
            lines.seek(kept)
            cut = lines.read()
        if cut and not (
            is_cut_record(cut) if self.form == "jsonl" else kept or header("csv", self._columns).startswith(cut)
        ):
            raise _foreign(path)
        return done, kept, failed, raw


class _LineLease:
    def __init__(self, file: OutputFile) -> None:
        self._file = file

    def write(self, record: CaptionRecord, finish_reason: FinishReason = "stop") -> str:
        self._file.add(record)
        return self._file.path

    def release(self, record: CaptionRecord | None = None) -> None:
        if record is not None:
            self._file.add(record)


def _opened(path: str, *, create: bool = True) -> IO[bytes]:
    return open(open_regular(path, os.O_RDWR | os.O_APPEND, create=create), "r+b", buffering=0)


def _reader(file: IO[bytes]) -> IO[bytes]:
    reader = open(os.dup(file.fileno()), "rb")  # noqa: SIM115 - the caller closes it
    reader.seek(0)
    return reader


def _foreign(path: str) -> UsageError:
    return UsageError(f"{path} exists and holds something other than captions", "Name another file, or move it away.")


def format_of(path: str) -> Format:
    """Return the format of the file's extension. Raise UsageError for another extension."""
    ending = os.path.splitext(path)[1].lower()
    if ending in (".jsonl", ".ndjson"):
        return "jsonl"
    if ending == ".csv":
        return "csv"
    raise UsageError(f"--output {path}: captions are written as .jsonl or .csv", "Or - for JSON Lines on stdout.")
