"""Wrap huggingface_hub. Only this file uses parts of it that are not its stable API."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mllama_cli.core.errors import DownloadError, unusable_proxy
from mllama_cli.core.version import __version__


def hub_url() -> str:
    """Return the Hub's URL: HF_ENDPOINT, else huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def client_error() -> type[Exception]:
    """Return the base of the web client's errors: httpx's or httpx2's, whichever huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


def require_client() -> None:
    """Raise DownloadError if no web client can be made with the user's proxy settings."""
    from huggingface_hub import get_session

    try:
        get_session()
    except (ImportError, ValueError) as error:
        raise unusable_proxy(error) from error
    except Exception as error:
        if type(error).__name__ != "InvalidURL":
            raise
        raise unusable_proxy(error) from error


@contextmanager
def streaming(url: str, start: int) -> Iterator[Any]:
    """Open a response with the bytes of ``url`` from ``start``; its status is 200 if the server ignores ranges."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    # Compressed bytes can be neither counted nor resumed. The client drops the token on a redirect to another host.
    require_token()
    headers = {**build_hf_headers(library_name="mllama", library_version=__version__), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    session: Any = get_session()
    with session.stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        yield response


def require_token() -> None:
    """Raise DownloadError if the token file is not text, which huggingface_hub would not say."""
    from huggingface_hub import constants, get_token

    try:
        get_token()
    except UnicodeDecodeError as error:
        raise DownloadError(
            f"The token file {constants.HF_TOKEN_PATH} is not UTF-8 text", "Run `hf auth login` again."
        ) from error


def body(response: Any) -> Iterator[bytes]:
    """Yield the bytes of a response as they come. Raise DownloadError if they are compressed.

    The client would decompress them before anything can be counted.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise DownloadError(f"{hub_url()} compresses its answer ({encoding[:40]})", "Check HF_ENDPOINT and proxy.")
    yield from response.iter_raw()  # of any size, so that a slow connection can be stopped


def get_bytes(url: str, limit: int) -> bytes:
    """Return what ``url`` answers. Raise DownloadError if it has more than ``limit`` bytes, or the client's error."""
    data = bytearray()
    with streaming(url, 0) as response:
        for chunk in body(response):
            data += chunk
            if len(data) > limit:
                raise DownloadError(f"{url} is larger than {limit >> 20} MiB", "Check HF_ENDPOINT, proxy and firewall.")
    return bytes(data)


def link(blob: Path, file: Path) -> None:
    """Make a snapshot's file a link to its blob, or a copy if the file system has no links."""
    from huggingface_hub.file_download import _create_symlink

    file.parent.mkdir(parents=True, exist_ok=True)
    _create_symlink(str(blob), str(file))


@contextmanager
def cache_lock(cache: Path, folder: str, etag: str) -> Iterator[None]:
    """Hold huggingface_hub's own lock on a file, so that only one process downloads it.

    It relies on flock, which some Lustre, GPFS and NFS mounts do not support, or not between machines.
    """
    path = cache / ".locks" / folder / f"{etag}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, mode=0o664)
    try:
        lock.acquire()
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence huggingface_hub's own messages, since our errors report what matters."""
    import huggingface_hub  # noqa: F401  (sets its logger's level when first imported)

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
