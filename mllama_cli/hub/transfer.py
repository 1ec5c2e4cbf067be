"""Download one file into the Hugging Face cache, resuming an earlier attempt from its last byte.

huggingface_hub (2.x) deletes partial files, which may be gigabytes of weights, when a download ends early, and writes
whatever comes. So files are streamed here, up to the size that the Hub declares. As in huggingface_hub, each process
writes its own partial file, so that without a working lock a file is downloaded twice but not damaged. The file's name
identifies its writer; abandoned files are taken over.
"""

import hashlib
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mllama_cli.core.errors import DownloadError
from mllama_cli.hub.client import body, client_error, streaming
from mllama_cli.system.files import exists, is_file, status_of
from mllama_cli.system.safe_files import open_regular

SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_READ_BYTES = 1 << 18
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
_RETRY_PAUSES = (0.5, 1, 2, 4)
"""Seconds before each retry. Give up after as many retries without a new byte."""
_IDLE_SECONDS = 60
"""A partial file without a write for this long is abandoned, whoever its writer is."""


class CancelledError(Exception):
    """The transfer was stopped by Ctrl-C or another file's failure."""


class Transfer:
    """One file of a repository. ``on_bytes`` is called with each number of new bytes, negative if some are dropped."""

    def __init__(
        self, url: str, blob: Path, size: int, *, on_bytes: Callable[[int], None], stop: threading.Event
    ) -> None:
        self.url, self.blob, self.size = url, blob, size
        self.partial = partial_file(blob, os.getpid())
        self._on_bytes, self._stop = on_bytes, stop
        self._digest = _digest_for(blob.name, size)

    def run(self) -> None:
        """Download the file, resuming after broken connections. Raise DownloadError or the client's or disk's error."""
        from huggingface_hub.errors import HfHubHTTPError

        self._hash_partial()
        retries = 0
        while (before := self._length()) < self.size:
            if is_file(self.blob):  # without a working lock, another process may have finished it
                return
            failure: Exception = DownloadError(f"The Hub ends {self.url} too early", "Run the same command again.")
            try:
                self._stream(before)
            except client_error() as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code not in _RETRIED_STATUS:
                    raise
                failure = error
            if self._length() >= self.size:
                break
            retries = 0 if self._length() > before else retries + 1
            if retries > len(_RETRY_PAUSES):
                raise failure
            if self._stop.wait(_RETRY_PAUSES[max(retries - 1, 0)]):
                raise CancelledError from None
        self._finish()

    def adopt(self) -> int:
        """Take over an earlier attempt's partial file, and return its length in bytes."""
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        for file in abandoned_partials(self.blob):
            if exists(self.partial):
                break
            with suppress(FileNotFoundError):  # another process took it
                file.rename(self.partial)
        if self._length() > self.size:
            self.partial.unlink()
        return self._length()

    def _hash_partial(self) -> None:
        """Add the bytes of an earlier attempt to the digest."""
        if self._digest and exists(self.partial):
            with self.partial.open("rb") as file:
                while chunk := file.read(_READ_BYTES):
                    if self._stop.is_set():
                        raise CancelledError
                    self._digest.update(chunk)

    def _stream(self, start: int) -> None:
        with streaming(self.url, start) as response:
            if start and response.status_code != 206:  # a proxy that knows no ranges starts over
                self._drop()
            with os.fdopen(open_regular(str(self.partial), os.O_WRONLY | os.O_APPEND, create=True), "ab") as file:
                room = self.size - self._length()
                for chunk in body(response):
                    chunk = chunk[:room]
                    room -= len(chunk)
                    file.write(chunk)
                    if self._digest:
                        self._digest.update(chunk)
                    self._on_bytes(len(chunk))
                    if self._stop.is_set():
                        raise CancelledError
                    if not room:  # the checksum says whether it is the file; what may follow has no end
                        return

    def _finish(self) -> None:
        self.partial.touch()  # an empty file has not been streamed
        if self._length() != self.size or (self._digest and self._digest.hexdigest() != self.blob.name):
            self._drop()
            what = f"{self.url.rsplit('/', 1)[-1]}: checksum mismatch; the partial file was deleted"
            raise DownloadError(what, "Run the same command again.")
        self.partial.replace(self.blob)
        for file in _partials(self.blob):
            with suppress(OSError):
                file.unlink()

    def _drop(self) -> None:
        self._on_bytes(-self._length())
        self.partial.unlink(missing_ok=True)
        self._digest = _digest_for(self.blob.name, self.size)

    def _length(self) -> int:
        status = status_of(self.partial)
        return status.st_size if status else 0


def partial_file(blob: Path, process: int) -> Path:
    """Return the partial file of a blob that a process of this machine writes."""
    return blob.with_name(f"{blob.name}.{_machine()}-{process}.incomplete")


def abandoned_partials(blob: Path) -> dict[Path, int]:
    """Return the partial files of a blob whose writer has exited or is this process, by size, the largest first."""
    sizes = {}
    for file in _partials(blob):
        with suppress(FileNotFoundError):  # its writer has just finished
            status = file.stat()
            if _is_abandoned(file, status.st_mtime):
                sizes[file] = status.st_size
    return dict(sorted(sizes.items(), key=lambda item: item[1], reverse=True))


def _partials(blob: Path) -> Iterable[Path]:
    return blob.parent.glob(f"{blob.name}.m????????-*.incomplete")  # huggingface_hub's own names have no "-"


def _is_abandoned(partial: Path, modified: float) -> bool:
    import psutil

    machine, _, process = partial.suffixes[-2].removeprefix(".").partition("-")
    if machine == _machine() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
        return True
    return time.time() - modified > _IDLE_SECONDS


def _machine() -> str:
    return f"m{zlib.crc32(socket.gethostname().encode()):08x}"


def _digest_for(etag: str, size: int) -> "hashlib._Hash | None":
    """Return the hash by which the Hub names a file: SHA-256 for LFS files, git's SHA-1 for others; None if unknown."""
    if SHA256.fullmatch(etag):
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size) if _GIT_SHA1.fullmatch(etag) else None
