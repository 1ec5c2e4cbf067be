"""Wrap huggingface_hub. Only this file uses parts of it that are not its stable API."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mllama_cli.core.errors import unusable_proxy
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
    headers = {**build_hf_headers(library_name="mllama", library_version=__version__), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    session: Any = get_session()
    with session.stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        yield response


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


class NoProgressBar:
    """Replace huggingface_hub's progress bars, since ``download`` reports progress itself."""

    n = 0
    total: int | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __enter__(self) -> "NoProgressBar":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


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
