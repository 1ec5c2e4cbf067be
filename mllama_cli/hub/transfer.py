"""Downloads one large file into the Hugging Face cache, and resumes an earlier attempt from its last byte.

huggingface_hub (2.x) deletes a partial file when a download ends early: for weights that is gigabytes. So weights are
streamed here, and huggingface_hub links them. As there, a partial file has one writer, so that a lock that does not
hold costs a second download and no damage. Its name tells the writer, and one that was abandoned is taken over.
"""

import hashlib
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mllama_cli.core.errors import DownloadError
from mllama_cli.hub.client import client_error, streaming

SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_READ_BYTES = 1 << 18
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
_PAUSES = (0.5, 1, 2, 4)
"""Seconds before each retry. After as many without one new byte we give up."""
_IDLE_SECONDS = 60
"""A partial file that nobody has written to for so long is abandoned, whoever wrote it."""


class CancelledError(Exception):
    """Another file failed, or Ctrl-C: this one stops where it is."""


class Transfer:
    """One file of a repository. ``grew(count)`` hears of every byte that arrives, or is lost again (negative)."""

    def __init__(self, url: str, blob: Path, size: int, *, grew: Callable[[int], None], stop: threading.Event) -> None:
        self.url, self.blob, self.size = url, blob, size
        self.partial = partial_file(blob, os.getpid())
        self._grew, self._stop = grew, stop
        self._digest = _digest_for(blob.name, size)

    def run(self) -> None:
        """Fetch it, resuming after broken connections. Raises what the web client or the disk raises."""
        from huggingface_hub.errors import HfHubHTTPError

        self._hash_partial()
        retries = 0
        while (before := self._length()) < self.size:
            if self.blob.is_file():  # where the lock does not hold, another process was faster
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
            if retries > len(_PAUSES):
                raise failure
            if self._stop.wait(_PAUSES[max(retries - 1, 0)]):
                raise CancelledError from None
        self._finish()

    def adopt(self) -> int:
        """Take over what an earlier attempt left, and return how many bytes that is."""
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        for file in abandoned_partials(self.blob):
            if self.partial.exists():
                break
            with suppress(FileNotFoundError):  # another process was faster
                file.rename(self.partial)
        if self._length() > self.size:
            self.partial.unlink()
        return self._length()

    def _hash_partial(self) -> None:
        """Read what is here already, so that the digest at the end covers it."""
        if self._digest and self.partial.exists():
            with self.partial.open("rb") as file:
                while chunk := file.read(_READ_BYTES):
                    if self._stop.is_set():
                        raise CancelledError
                    self._digest.update(chunk)

    def _stream(self, start: int) -> None:
        with streaming(self.url, start) as response:
            if start and response.status_code != 206:  # a proxy that knows no ranges starts over
                self._drop()
            with self.partial.open("ab") as file:
                for chunk in response.iter_bytes():  # as they come: a slow line shows, and stops, at once
                    file.write(chunk)
                    if self._digest:
                        self._digest.update(chunk)
                    self._grew(len(chunk))
                    if self._stop.is_set():
                        raise CancelledError

    def _finish(self) -> None:
        if self._length() != self.size or (self._digest and self._digest.hexdigest() != self.blob.name):
            self._drop()
            what = f"{self.url.rsplit('/', 1)[-1]}: checksum mismatch; the partial file was deleted"
            raise DownloadError(what, "Run the same command again.")
        self.partial.replace(self.blob)
        for file in _partials(self.blob):
            with suppress(OSError):
                file.unlink()

    def _drop(self) -> None:
        self._grew(-self._length())
        self.partial.unlink(missing_ok=True)
        self._digest = _digest_for(self.blob.name, self.size)

    def _length(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0


def partial_file(blob: Path, process: int) -> Path:
    """Return the file into which a process of this machine downloads a blob."""
    return blob.with_name(f"{blob.name}.{_machine()}-{process}.incomplete")


def abandoned_partials(blob: Path) -> list[Path]:
    """Return the partial files of a blob whose writers are gone, or were this process; the largest first."""
    return sorted(filter(_is_abandoned, _partials(blob)), key=lambda file: file.stat().st_size, reverse=True)


def _partials(blob: Path) -> list[Path]:
    return [file for file in blob.parent.glob(f"{blob.name}.*.incomplete") if _writer(file) is not None]


def _writer(partial: Path) -> tuple[str, int] | None:
    """Return (machine, process id) of who writes a partial file; None for one of another program's."""
    match = re.fullmatch(r".+\.m([0-9a-f]{8})-(\d+)\.incomplete", partial.name)
    return (f"m{match[1]}", int(match[2])) if match else None


def _is_abandoned(partial: Path) -> bool:
    import psutil

    machine, process = _writer(partial) or ("", 0)
    if machine == _machine() and (process == os.getpid() or not psutil.pid_exists(process)):
        return True
    return time.time() - partial.stat().st_mtime > _IDLE_SECONDS


def _machine() -> str:
    return f"m{zlib.crc32(socket.gethostname().encode()):08x}"


def _digest_for(etag: str, size: int) -> "hashlib._Hash | None":
    """Return the digest by which the Hub names a file: SHA-256 of LFS files, git's SHA-1 of others, or none."""
    if SHA256.fullmatch(etag):
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size) if _GIT_SHA1.fullmatch(etag) else None
