"""Download the pictures that shards name by URL, some ahead of their turn."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from mllama_cli.captioning.shards.read_ahead import MAX_BYTES, MAX_ITEMS
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.processing.fetch import fetch_image
from mllama_cli.processing.limits import Limits

DOWNLOADS = 32
"""Pictures that are downloaded at once."""
MAX_URL = 8192
"""Characters of a URL."""

_AHEAD = Limits(max_bytes=MAX_BYTES // MAX_ITEMS)


class Downloads:
    """Fetches from public addresses alone: whoever made a shard must not reach into the network of this machine."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download")
        self._turn = threading.Lock()

    def begin(self, url: str) -> "Download":
        """Return a download that has begun, or waits for others."""
        return Download(url, self._pool.submit(fetch_image, url, _AHEAD, public_only=True), self._turn)

    def close(self, *, cancel: bool = False) -> None:
        """Begin no more. Those that have begun go on; with ``cancel``, those that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=cancel)


class Download:
    """A picture on its way. One that is too large to be kept for long is fetched when it is needed, one at a time."""

    def __init__(self, url: str, ahead: "Future[ImagePart]", turn: threading.Lock) -> None:
        self._url, self._ahead, self._turn = url, ahead, turn

    def result(self) -> ImagePart:
        """Return the picture. Raise MllamaError if it cannot be had."""
        try:
            return self._ahead.result()
        except ImageError:
            with self._turn:
                large: Future[ImagePart] = Future()
                large.set_result(fetch_image(self._url, public_only=True))
                self._ahead = large
        return self._ahead.result()


Fetch = Callable[[str], Download]
