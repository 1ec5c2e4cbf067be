"""Object stores and web servers, through fsspec."""

import io
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any, BinaryIO, TypeVar, cast

from mllama_cli.captioning.shards.packages import missing, required
from mllama_cli.captioning.shards.retrying import (
    BUFFER_BYTES,
    RetryingFile,
    has_no_login,
    is_bad_name,
    is_refused,
    reason_of,
    retrying,
)
from mllama_cli.captioning.shards.store import MAX_SMALL_BYTES, StoreError
from mllama_cli.core.errors import UsageError

CONNECT_SECONDS, READ_SECONDS = 10, 60
BLOCK_BYTES = 8 * 2**20
"""What one request reads ahead, and the parts that a large file is written in."""

CONDITIONAL = ("s3", "s3a", "gs", "gcs", "memory")
"""Stores that create an object only if there is none, in one step."""

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}

T = TypeVar("T")


class RemoteStore:
    """A ``Store`` of one scheme."""

    def __init__(self, scheme: str, system: Any) -> None:
        self.scheme = scheme
        self._system = system

    @classmethod
    @cache
    def of(cls, scheme: str) -> "RemoteStore":
        """Return the store of a scheme. Raise UsageError if it is unknown, or a package is missing."""
        fsspec = required("fsspec")
        try:
            system = fsspec.filesystem(scheme, use_listings_cache=False, **_timeouts(scheme))
        except ImportError as error:
            raise missing(_PACKAGES.get(scheme, f"of fsspec for {scheme}://")) from error
        except (TypeError, ValueError) as error:  # TypeError: it needs to know more than a scheme
            raise UsageError(
                f"Files cannot be read from {scheme}:// addresses", "Give a path, s3://, gs:// or https://."
            ) from error
        _try_once(system)
        return cls(scheme, system)

    def found(self, path: str) -> list[str] | None:
        if any(character in path for character in "*?["):
            return self._matching(path)
        if self.scheme in ("http", "https") or not (path.endswith("/") or self._is_folder(path)):
            return None
        return [self._address(each) for each in self._try(lambda: self._system.ls(path, detail=False), path)]

    def open(self, path: str) -> BinaryIO:
        def opened() -> BinaryIO:
            return cast(BinaryIO, self._system.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead"))

        return cast(BinaryIO, io.BufferedReader(self._try(lambda: RetryingFile(opened, path), path), BUFFER_BYTES))

    def names(self, folder: str) -> list[str]:
        def listed() -> list[str]:
            try:
                return list(self._system.find(folder))
            except FileNotFoundError:
                return []

        start = len(self._system._strip_protocol(folder).rstrip("/")) + 1
        return [str(name)[start:] for name in self._try(listed, folder)]

    def exists(self, path: str) -> bool:
        return bool(self._try(lambda: self._system.exists(path), path))

    def read(self, path: str) -> bytes | None:
        def data() -> bytes | None:
            try:
                return cast(bytes, self._system.cat_file(path, end=MAX_SMALL_BYTES))
            except FileNotFoundError:
                return None

        return self._try(data, path)

    def write(self, path: str, data: bytes) -> None:
        self._written(lambda: self._system.pipe_file(path, data), path)

    def create(self, path: str, data: bytes) -> bool:
        created = self._created(lambda: self._system.pipe_file(path, data, mode="create"), path)
        return created or self.read(path) == data  # an attempt that seemed to fail may have been carried out

    def publish(self, file: BinaryIO, path: str) -> bool:
        def copy() -> None:
            file.seek(0)
            with self._system.open(path, "xb", block_size=BLOCK_BYTES) as target:
                shutil.copyfileobj(file, target, BLOCK_BYTES)

        size = file.seek(0, io.SEEK_END)
        if size >= BLOCK_BYTES and self.scheme != "memory":
            return self._created(copy, path)
        file.seek(0)
        data = file.read()
        return self._created(lambda: self._system.pipe_file(path, data, mode="create"), path)

    def remove(self, path: str) -> None:
        def removed() -> None:
            with suppress(FileNotFoundError):
                self._system.rm_file(path)

        self._try(removed, path)

    def _matching(self, pattern: str) -> list[str]:
        """Return the files that a pattern matches. fsspec's own glob takes a store that fails for an empty one."""
        from fsspec.utils import glob_translate

        plain = str(self._system._strip_protocol(pattern))
        folder = plain[: re.search(r"[*?\[]", plain).start()].rpartition("/")[0]  # type: ignore[union-attr]
        matches = re.compile(glob_translate(plain)).match
        found = self._try(lambda: list(self._system.find(folder)), pattern)
        return [self._address(each) for each in found if matches(str(each))]

    def _is_folder(self, path: str) -> bool:
        def found() -> bool:  # isdir takes a store that fails for a missing folder
            try:
                return bool(self._system.info(path)["type"] == "directory")
            except FileNotFoundError:
                return False

        return self._try(found, path)

    def _address(self, path: str) -> str:
        return str(path) if "://" in str(path) else str(self._system.unstrip_protocol(path))

    def _created(self, create: Callable[[], object], path: str) -> bool:
        def tried() -> bool:
            try:
                create()
            except Exception as error:
                if _is_taken(error):
                    return False
                raise
            return True

        return self._written(tried, path)

    def _written(self, write: Callable[[], T], path: str) -> T:
        def written() -> T:
            try:
                return write()
            except FileNotFoundError as error:
                raise StoreError(f"{path}: there is no such bucket", "Create it, or check the address.") from error

        return self._try(written, path)

    def _try(self, work: Callable[[], T], path: str) -> T:
        try:
            return retrying(work, path)
        except FileNotFoundError as error:
            raise StoreError(f"no such file: {path}", "Check the address.") from error
        except Exception as error:
            reason = reason_of(error)
            if is_refused(error):
                raise StoreError(f"{path}: the store refuses: {reason}", "Check the key and its rights.") from error
            if isinstance(error, OSError) or is_bad_name(error):
                raise StoreError(f"{path}: {reason}", "Check the address.") from error
            if has_no_login(error):
                raise StoreError(f"{path}: {reason}", "Log in to the store first.") from error
            raise


def _timeouts(scheme: str) -> dict[str, Any]:
    """Return the options of a file system that limit how long it waits for a store. Raise ImportError."""
    if scheme in ("s3", "s3a"):
        once = {"total_max_attempts": 1}
        return {"config_kwargs": {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": once}}
    if scheme in ("gs", "gcs"):  # gcsfs would wait for ever
        from aiohttp import ClientTimeout

        return {"requests_timeout": ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)}
    return {}


def _try_once(system: Any) -> None:
    """Let requests of a file system fail at once, silently. We try again ourselves, and the attempts would multiply."""
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # else each request may warn of a bucket of unknown type
    if hasattr(system, "retries"):
        system.retries = 1  # s3fs
    request = getattr(getattr(type(system), "_request", None), "__wrapped__", None)
    if request is not None:
        system._request = partial(request, system)  # gcsfs, whose attempts have a fixed number


def _is_taken(error: Exception) -> bool:
    """Return whether an error says that an object of that name exists."""
    if isinstance(error, FileExistsError):
        return True
    texts = (str(error), str(error.__cause__ or ""))
    return any(sign in text for text in texts for sign in ("PreconditionFailed", "pre-conditions"))
