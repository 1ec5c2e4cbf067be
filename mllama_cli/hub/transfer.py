"""Brings one large file into the Hugging Face cache, to the byte from where an earlier try stopped.

huggingface_hub (2.x) throws a partial file away when a download ends early: for weights that is gigabytes. So weights
are streamed here into ``blobs/<etag>.incomplete``, the name and lock that huggingface_hub knows; it links them itself.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mllama_cli.core.errors import DownloadError
from mllama_cli.core.version import __version__
from mllama_cli.hub.errors import client_error

SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 18
_PASSING = (408, 429, 500, 502, 503, 504)
_PAUSES = (0.5, 1, 2, 4)  # seconds before a new try; after as many tries without one new byte we give up


class CancelledError(Exception):
    """Another file failed, or Ctrl-C: this one stops where it is."""


class Transfer:
    """One file of a repository. ``grew(count)`` hears of every byte that arrives, or is lost again (negative)."""

    def __init__(self, url: str, blob: Path, size: int, *, grew: Callable[[int], None], stop: threading.Event) -> None:
        self.url, self.blob, self.size = url, blob, size
        self.partial = blob.with_name(blob.name + ".incomplete")
        self._grew, self._stop = grew, stop
        self._digest = hashlib.sha256()
        # The hub names weights by their SHA-256; other names are git's and say nothing about the bytes alone.
        self._expected = blob.name if SHA256.fullmatch(blob.name) else None

    def run(self) -> None:
        """Fetch it, going on after broken connections. Raises what the web client or the disk raises."""
        from huggingface_hub.errors import HfHubHTTPError

        self._take_up()
        tries = 0
        while (before := self._length()) < self.size:
            failure: Exception = DownloadError(f"The hub ends {self.url} too early", "Run the same command again.")
            try:
                self._stream(before)
            except client_error() as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code not in _PASSING:
                    raise
                failure = error
            if self._length() >= self.size:
                break
            tries = 0 if self._length() > before else tries + 1
            if tries > len(_PAUSES):
                raise failure
            if self._stop.wait(_PAUSES[max(tries - 1, 0)]):
                raise CancelledError from None
        self._finish()

    def _take_up(self) -> None:
        """Read what an earlier try left, so that the sum at the end covers it."""
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        if self._length() > self.size:
            self._drop()
        if self._expected and self.partial.exists():
            with self.partial.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    if self._stop.is_set():
                        raise CancelledError
                    self._digest.update(chunk)

    def _stream(self, start: int) -> None:
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        # Compressed bytes could not be counted nor gone on from. The client drops the token when it is led elsewhere.
        headers = {
            **build_hf_headers(library_name="mllama", library_version=__version__),
            "Accept-Encoding": "identity",
        }
        if start:
            headers["Range"] = f"bytes={start}-"
        session: Any = get_session()
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with session.stream("GET", self.url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # a proxy that knows no ranges begins anew
                self._drop()
            with self.partial.open("ab") as file:
                for chunk in response.iter_bytes():  # as they come: a slow line shows, and stops, at once
                    file.write(chunk)
                    self._digest.update(chunk)
                    self._grew(len(chunk))
                    if self._stop.is_set():
                        raise CancelledError

    def _finish(self) -> None:
        damaged = self._length() != self.size or (self._expected and self._digest.hexdigest() != self._expected)
        if damaged:
            self._drop()
            raise DownloadError(
                f"{self.url.rsplit('/', 1)[-1]} arrived damaged and was thrown away", "Run the same command again."
            )
        self.partial.replace(self.blob)

    def _drop(self) -> None:
        self._grew(-self._length())
        self.partial.unlink(missing_ok=True)
        self._digest = hashlib.sha256()

    def _length(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0
