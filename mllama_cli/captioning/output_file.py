"""All captions in one file, JSON Lines or CSV, that grows line by line and survives whatever stops the run."""

import os
import time
from contextlib import suppress
from typing import IO

from mllama_cli.captioning.destinations import Destination, Held
from mllama_cli.captioning.listing import Picture
from mllama_cli.captioning.locks import Claim
from mllama_cli.captioning.records import Format, encode, header, records
from mllama_cli.captioning.sidecars import unwritable
from mllama_cli.core.caption_events import CaptionRecord
from mllama_cli.core.errors import CaptionError, UsageError

_FIRST = {"jsonl": b'{"path": ', "csv": header("csv")}
"""How a file of ours begins."""

SYNC_LINES = 32
SYNC_SECONDS = 2.0
"""A line is written at once; the disk is made to hold it after so many, or so long: what a power cut may cost."""


class OutputFile:
    """``FILE.jsonl`` or ``FILE.csv``, in one run's hands at a time.

    With ``existing`` skip, pictures that stand in the file with a caption are done; lines that say what failed give
    way to what comes of a new try. With overwrite a new file grows beside the old one, known by ``run`` so that the
    same command goes on with it, and takes its place at the end.

    Args:
        path: the file.
        run: what tells this run from others (a digest of the command).
        texts: where the texts of caption files come from, for prompts that quote them.

    Raises:
        UsageError: another ending, or a file that is none of ours.
        CaptionError: it cannot be written, or another run writes it.
    """

    def __init__(self, path: str, *, overwrite: bool = False, run: str = "", texts: Destination | None = None) -> None:
        self.path = path
        self.form = format_of(path)
        self._texts = texts
        self._overwrite = overwrite
        folder, name = os.path.split(path)
        self._growing = os.path.join(folder, f".{name}.{run[:8]}.part") if overwrite else path
        self._unsynced, self._synced = 0, time.monotonic()
        try:
            lock = Claim.take(path)
            if lock is None:
                raise CaptionError(f"Another run is writing {path}", "Wait for it, or give each run its own --output.")
            self._lock = lock
            try:
                self._done = self._take_up()
                self._file: IO[bytes] = open(self._growing, "ab", buffering=0)  # noqa: SIM115 - until ``finish``
                if self._file.tell() == 0:
                    self._append(header(self.form))
            except BaseException:
                lock.drop()
                raise
        except OSError as error:
            raise unwritable(path, error) from error

    def is_done(self, picture: Picture) -> bool:
        return os.path.normpath(picture.path) in self._done

    def take(self, picture: Picture) -> Held | str:
        return _Line(self)

    def existing(self, picture: Picture) -> str:
        return self._texts.existing(picture) if self._texts else ""

    def add(self, record: CaptionRecord) -> None:
        """Append one line. CaptionError where the disk takes no more; the file then ends with a whole line."""
        try:
            self._append(encode(record, self.form))
        except OSError as error:
            raise unwritable(self.path, error) from error

    def finish(self, *, through: bool, complete: bool) -> None:
        if self._file.closed:
            return
        try:
            with self._file:
                os.fsync(self._file.fileno())
            if self._overwrite and through:
                os.replace(self._growing, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            self._lock.drop()

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

    def _take_up(self) -> set[str]:
        """Paths that are done. Cuts an unfinished line at the end, and leaves out lines of what failed."""
        done: set[str] = set()
        kept, failed = 0, 0
        try:
            file = open(self._growing, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return done
        with file:
            for raw, values in records(iter(file), self.form):
                kept += len(raw)
                if values is None:
                    self._must_be_ours(raw, at_start=kept == len(raw))
                elif values.get("error"):
                    failed += 1
                elif isinstance(values.get("path"), str):
                    done.add(os.path.normpath(values["path"]))
            size = file.seek(0, os.SEEK_END)
        if failed:
            self._leave_out_failed()
        elif kept < size:
            if not kept:  # killed in the midst of the very first line, or no file of ours
                with open(self._growing, "rb") as file:
                    begun = file.read(len(_FIRST[self.form]))
                if not _FIRST[self.form].startswith(begun):
                    self._must_be_ours(begun, at_start=False)
            os.truncate(self._growing, kept)
        return done

    def _must_be_ours(self, raw: bytes, *, at_start: bool) -> None:
        if self.form == "csv" and at_start and raw == header("csv"):
            return
        raise UsageError(
            f"{self.path} exists and holds something else than captions", "Name another file, or move it away."
        )

    def _leave_out_failed(self) -> None:
        new = f"{self._growing}.new"
        with open(self._growing, "rb") as old, open(new, "wb") as file:
            for raw, values in records(iter(old), self.form):
                if values is None or not values.get("error"):
                    file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._growing)


class _Line:
    def __init__(self, file: OutputFile) -> None:
        self._file = file

    def write(self, record: CaptionRecord) -> str:
        self._file.add(record)
        return self._file.path

    def drop(self, record: CaptionRecord | None = None) -> None:
        if record is not None:
            self._file.add(record)


def format_of(path: str) -> Format:
    """By the name's ending. UsageError for any other."""
    ending = os.path.splitext(path)[1].lower()
    if ending in (".jsonl", ".ndjson"):
        return "jsonl"
    if ending == ".csv":
        return "csv"
    raise UsageError(f"--output {path}: captions are written as .jsonl or .csv", "Or - for JSON Lines on stdout.")
