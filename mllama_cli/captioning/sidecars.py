"""Caption files beside their pictures: photo.txt beside photo.jpg."""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache

from mllama_cli.captioning.destinations import Held
from mllama_cli.captioning.journal import Entry, Journal, digest
from mllama_cli.captioning.listing import Picture
from mllama_cli.captioning.locks import Claim
from mllama_cli.core.caption_events import CaptionRecord, Existing
from mllama_cli.core.errors import CaptionError

ANOTHER_RUN = "another run has it in work"
MEANWHILE = "captioned meanwhile"


class Sidecars:
    """UTF-8 text files with one newline at the end. An empty file counts as none.

    Args:
        places: caption file of each picture's path (``sidecar_names``).
        existing: what becomes of a caption that is there.
        separator: between an old caption and a new one.
        journal: for every ``existing`` but skip, which needs none: the files themselves tell what is done.
    """

    def __init__(
        self,
        places: Mapping[str, str],
        *,
        existing: Existing = "skip",
        separator: str = " ",
        journal: Journal | None = None,
    ) -> None:
        if existing != "skip" and journal is None:
            raise ValueError(f"{existing!r} needs a journal")
        self._places = places
        self._how = existing
        self._separator = separator
        self._journal = journal
        self._known = dict(journal.entries()) if journal else {}
        self._elsewhere: list[Picture] = []

    def is_done(self, picture: Picture) -> bool:
        if self._how == "skip":
            with suppress(OSError):
                return os.stat(self._places[picture.path]).st_size > 0
            return False
        entry = self._known.get(_key(picture))
        return entry is not None and self._holds(picture, entry)

    def take(self, picture: Picture) -> Held | str:
        claim = Claim.take(self._places[picture.path])
        if claim is None:
            self._elsewhere.append(picture)
            return ANOTHER_RUN
        # Another run may have been here since the quick look.
        try:
            if self._journal is not None:
                entry = self._journal.get(_key(picture))
                if entry is not None and entry.stamp == stamp(picture):
                    if entry.before != digest(self.existing(picture)):
                        claim.drop()
                        return MEANWHILE
                    self._apply(claim, picture, entry.caption)  # killed between the journal and the file
                    return MEANWHILE
            elif self.is_done(picture):
                claim.drop()
                return MEANWHILE
        except BaseException:
            claim.drop()
            raise
        return _HeldSidecar(self, claim, picture)

    def existing(self, picture: Picture) -> str:
        try:
            with open(self._places[picture.path], encoding="utf-8-sig", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def finish(self, *, through: bool, complete: bool) -> None:
        if self._journal is None:
            return
        if complete and all(self._done_elsewhere(picture) for picture in self._elsewhere):
            self._journal.forget()
        self._journal.close()

    def write(self, claim: Claim, picture: Picture, caption: str) -> None:
        if self._journal is not None:
            self._journal.add(_key(picture), Entry(stamp(picture), digest(self.existing(picture)), caption))
        self._apply(claim, picture, caption)

    def _apply(self, claim: Claim, picture: Picture, caption: str) -> None:
        before = self.existing(picture).strip()
        if before and self._how in ("append", "prepend"):
            pair = (before, caption) if self._how == "append" else (caption, before)
            caption = self._separator.join(pair)
        claim.write(caption.rstrip("\n") + "\n")

    def _holds(self, picture: Picture, entry: Entry) -> bool:
        """Whether the change that an entry speaks of has been made."""
        return entry.stamp == stamp(picture) and entry.before != digest(self.existing(picture))

    def _done_elsewhere(self, picture: Picture) -> bool:
        assert self._journal is not None
        entry = self._journal.get(_key(picture))
        return entry is not None and self._holds(picture, entry)


class _HeldSidecar:
    def __init__(self, sidecars: Sidecars, claim: Claim, picture: Picture) -> None:
        self._sidecars = sidecars
        self._claim = claim
        self._picture = picture

    def write(self, record: CaptionRecord) -> str:
        try:
            self._sidecars.write(self._claim, self._picture, record.caption)
        except OSError as error:
            self._claim.drop()
            raise unwritable(self._claim.destination, error) from error
        return self._claim.destination

    def drop(self, record: CaptionRecord | None = None) -> None:
        self._claim.drop()


_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def unwritable(path: str, error: OSError) -> CaptionError:
    """What it means that a caption file cannot be written."""
    hint = "Free some space and run the same command again: it goes on where it was."
    if error.errno not in _FULL:
        hint = "Check who may write there, or let captions go to one file: --output FILE.jsonl."
    return CaptionError(f"{path} cannot be written: {error.strerror or error}", hint)


def is_full(error: BaseException) -> bool:
    """Whether a disk without room is behind an error: then no other picture will fare better."""
    return (isinstance(error, OSError) and error.errno in _FULL) or (
        error.__cause__ is not None and is_full(error.__cause__)
    )


def stamp(picture: Picture) -> str:
    """Tells a picture's content as well as can be without reading it: its size and when it was written."""
    try:
        status = os.stat(picture.path)
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def _key(picture: Picture) -> str:
    path = os.path.join(_real(picture.folder), picture.name)
    return path.encode(
        "utf-8", "backslashreplace"
    ).decode()  # a file's name may be any bytes, a database's text may not


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
