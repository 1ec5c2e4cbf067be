"""Addresses of images, and web servers that misbehave."""

from collections.abc import Iterator
from pathlib import Path

from mllama_cli.processing.limits import Limits
from mllama_cli.processing.sources import read_image
from tests.hostile.cases import SECRET, Case
from tests.processing.pictures import file_of, noise
from tests.processing.server import serving

ADDRESSES = (
    f"http://bob:{SECRET}@127.0.0.1:99999/x", f"http://bob:{SECRET}@[::1/x", f"http://bob:{SECRET} @host/x",
    f"http://bob:{SECRET}@/x", f"http://bob:\1{SECRET}@host/x", f"http://bob:/{SECRET}@host.invalid/x",
    f"http://bob:#{SECRET}@host.invalid/x", f"http://bob:?{SECRET}@host.invalid/x",
    f"http://bob:{SECRET}{'A' * 70_000}@host.invalid/x", f"ftp://bob:{SECRET}@host/x", f"file://bob:{SECRET}@host/x",
    f"file://bob:{SECRET}@[host/x", f"http:/bob:{SECRET}@host/x", f"http:/bob:/{SECRET}@host/x.png",
    f"  http://bob:{SECRET}@[::1/x", f"//bob:{SECRET}@host/x", "http://", "http://[", "http://127.0.0.1:1/x",
    "https:",
    "http://127.0.0.1:1/" + "x" * 100_000, "http://\0/", "http://\ud800/x", "http://..../x", "http://xn--/x",
    "gopher://x",
    "file:///dev/zero", "file:///dev/stdin", "file://", "file:///etc/passwd", "file:///" + "a/" * 5000, "/dev/zero",
    "/",
    "data:", "data:,", "data:,\udcff", "data:image/png;base64,", "data:image/png;base64,====",
    "data:;base64," + "A" * 10**7,
    "A" * 5000, "a/" * 3000, "x" * 300 + ".png", "\0.png", "\ud800.png", "~nosuch/x.png", "", " ", ".", "..", "\n",
)  # fmt: skip
PAGES = (
    "picture", "mislabelled", "page", "longpage", "json", "svg", "empty", "status/404", "status/500", "status/999",
    "loop", "moved", "elsewhere?file:///etc/passwd", "elsewhere?ftp://x/y", f"elsewhere?http://a:{SECRET}@[x/",
    "short",
    "liar", "packed/gzip", "packed/gzip,%20gzip", "packed/br", "packed/zstd", "drip", "dripheaders", "silent",
    "nothing",
    "elsewhere?//127.0.0.1:1/", "elsewhere?data:image/png;base64,AAAA", "elsewhere?javascript:1",
)  # fmt: skip
LIMITS = Limits(max_bytes=4 * 2**20, total_seconds=2)


def cases() -> Iterator[Case]:
    """Yield an attempt to read each address."""
    for address in ADDRESSES:
        yield Case(f"address {address[:40]!r}", lambda _, address=address: read_image(address))
    for page in PAGES:
        yield Case(f"server: {page}", lambda _, page=page: _fetch(page, LIMITS))
    yield Case("server: an endless picture", lambda _: _fetch("endless", Limits()), heavy=True)
    yield Case("a folder", _read_folder)


def _fetch(page: str, limits: Limits) -> None:
    with serving(file_of(noise())) as server:
        read_image(f"{server.url}/{page}", limits=limits)


def _read_folder(folder: Path) -> None:
    read_image(str(folder))
