"""huggingface_hub, as far as it is used here. What it does not promise to keep is used in this file alone."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mllama_cli.core.version import __version__


def hub_url() -> str:
    """Return the Hub that HF_ENDPOINT names, else huggingface.co."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def client_error() -> type[Exception]:
    """Return what the web client raises: of httpx or httpx2, whichever huggingface_hub builds its own error on."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    assert issubclass(base, Exception)
    return base


@contextmanager
def streaming(url: str, start: int) -> Iterator[Any]:
    """The web client's response with the bytes of ``url`` from ``start`` on; status 200 where ranges are not known."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    # Compressed bytes could neither be counted nor resumed. The client drops the token when it is redirected elsewhere.
    headers = {**build_hf_headers(library_name="mllama", library_version=__version__), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    session: Any = get_session()
    with session.stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        yield response


@contextmanager
def cache_lock(cache: Path, folder: str, etag: str) -> Iterator[None]:
    """Hold the lock by which huggingface_hub, too, keeps processes from fetching one file at a time twice.

    It holds as well as the file system's flock does: on some Lustre, GPFS and NFS mounts that is not at all, or not
    between machines.
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


class NoBar:
    """Stands in for huggingface_hub's progress bars: the bytes are counted elsewhere."""

    n = 0
    total: int | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __enter__(self) -> "NoBar":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence huggingface_hub's own messages: what matters reaches the user as an error of ours."""
    import huggingface_hub  # noqa: F401  (sets its logger's level when first imported)

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
