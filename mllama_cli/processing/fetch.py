"""Download an image from a web server, under one time limit and with a clear error for each way to fail."""

import asyncio
import os
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import DownloadError, ImageError, UsageError, unusable_proxy
from mllama_cli.core.filetypes import document_format
from mllama_cli.core.text import hide_passwords
from mllama_cli.processing.limits import DEFAULT_LIMITS, Limits, too_many_bytes
from mllama_cli.processing.sniff import not_a_picture
from mllama_cli.system.interrupts import ThreadPool

if TYPE_CHECKING:
    import httpx

_MAX_REDIRECTS = 10
_CHECK_NETWORK = "Check the address and the network connection."
_STATUS_HINTS = {
    401: "It needs a login: save the picture with a browser and give the file.",
    403: "The server refuses: save the picture with a browser and give the file.",
    404: "Check the address.",
    410: "The picture was removed.",
    429: "Too many requests: try again later.",
}


def fetch_image(url: str, limits: Limits = DEFAULT_LIMITS, *, public_only: bool = False) -> ImagePart:
    """Return the bytes behind an http(s) URL as an ImagePart.

    With ``public_only``, no private, loopback, link-local or other special address is connected to, not after a
    redirect either, and proxies are not used, since they resolve names themselves.

    Raises DownloadError (unreachable, too slow, an error status, too many redirects, a web page or something else that
    is not an image), ImageError (over ``limits.max_bytes``, or empty), UsageError (not a valid URL, or not public).
    """
    _require_valid(url)
    name = hide_passwords(url)
    # asyncio's timeout, unlike a socket's, also covers a hanging name server and a server that sends its headers or
    # body byte by byte.
    if not _inside_a_loop():
        return ImagePart(asyncio.run(_fetch(url, name, limits, public_only)), name)
    with ThreadPool(1) as pool:  # notebooks run a loop in the caller's thread, which cannot run another
        return ImagePart(pool.submit(asyncio.run, _fetch(url, name, limits, public_only)).result(), name)


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _fetch(url: str, name: str, limits: Limits, public_only: bool) -> bytes:
    import httpx

    host = urlsplit(url).hostname
    try:
        async with (
            asyncio.timeout(limits.total_seconds),
            _client(limits, public_only) as client,
            client.stream("GET", url) as reply,
        ):
            return await _read(reply, name, limits)
    except TimeoutError as error:
        raise DownloadError(
            f"{name}: not there after {limits.total_seconds:g} s", "Try again, or download it and give the file."
        ) from error
    except httpx.ConnectTimeout as error:
        raise DownloadError(f"{host} did not answer within {limits.connect_seconds:g} s", _CHECK_NETWORK) from error
    except httpx.ConnectError as error:
        raise DownloadError(f"cannot reach {host}: {_reason(error)}", _CHECK_NETWORK) from error
    except httpx.TooManyRedirects as error:
        raise DownloadError(
            f"{name}: redirected more than {_MAX_REDIRECTS} times", "Open it in a browser and copy the final address."
        ) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:  # of a redirect: the URL was checked
        raise DownloadError(
            f"{name}: redirected to an address that is not valid, or not http or https",
            "Copy the address of the picture itself.",
        ) from error
    except httpx.HTTPError as error:
        raise DownloadError(f"{name}: the download broke off ({_reason(error)})", "Try again.") from error


def _client(limits: Limits, public_only: bool) -> "httpx.AsyncClient":
    import httpx

    from mllama_cli.core.version import __version__
    from mllama_cli.processing.public_hosts import PublicTransport

    # A server that closes a kept connection during a redirect would look like a broken download.
    connections = httpx.Limits(max_keepalive_connections=0)
    try:
        return httpx.AsyncClient(
            follow_redirects=True,
            max_redirects=_MAX_REDIRECTS,
            timeout=httpx.Timeout(None, connect=limits.connect_seconds),
            limits=connections,
            transport=PublicTransport(httpx.AsyncHTTPTransport(limits=connections)) if public_only else None,
            trust_env=not public_only,
            # Uncompressed, so that max_bytes limits what arrives; some servers refuse clients without a name.
            headers={
                "User-Agent": f"mllama/{__version__}",
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise unusable_proxy(error) from error


async def _read(reply: "httpx.Response", name: str, limits: Limits) -> bytes:
    if reply.status_code != 200:
        code = reply.status_code
        hint = _STATUS_HINTS.get(code, "Try again later." if code >= 500 else "Check the address.")
        raise DownloadError(f"{name}: the server answered {code} {reply.reason_phrase}".rstrip(), hint)
    # httpx would decompress before anything can be counted: kilobytes may unfold to gigabytes.
    encoding = reply.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise DownloadError(
            f"{name}: the server compressed the picture ({encoding[:40]}) though it was asked not to",
            "Save it with a browser and give the file.",
        )
    body = bytearray()
    checked = False
    async for chunk in reply.aiter_raw():
        body += chunk
        if len(body) > limits.max_bytes:
            raise too_many_bytes(name, limits)
        if not checked and len(body) >= 4096:  # refuse a long video or page early
            _require_picture(bytes(body), reply, name)
            checked = True
    if not body:
        raise ImageError(f"{name} is empty (0 bytes)", "Check the address.")
    _require_picture(bytes(body), reply, name)
    return bytes(body)


def _require_picture(body: bytes, reply: "httpx.Response", name: str) -> None:
    """Raise DownloadError for another kind of file, by its bytes, since servers often declare the wrong type."""
    kind = not_a_picture(body)
    if kind is not None and document_format(body) is None:
        declared = reply.headers.get("content-type", "").partition(";")[0].strip() or "no type given"
        what = "a web page" if "web page" in kind.what else kind.what
        raise DownloadError(f"{name} gave {what} ({declared}), not a picture", kind.hint)


def _require_valid(url: str) -> None:
    import httpx

    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # reading the port checks its range
        _ = httpx.URL(url).host  # reading it decodes international names
    except (ValueError, httpx.InvalidURL) as error:
        reason = "" if "@" in url else f": {error}"  # it may quote a part of the password
        raise UsageError(f"{url} is not a valid URL{reason}", "Check the address.") from error
    if not host or any(character.isspace() for character in parts.netloc):
        raise UsageError(f"{url} is not a valid URL: it has no proper host", "Check the address.")


def _reason(error: Exception) -> str:
    """Return the root cause's message, since httpx only says "All connection attempts failed"."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(cause, BaseExceptionGroup):  # one for each address of the host
        cause = cause.exceptions[0]
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted ({cause.verify_message})"
    if isinstance(cause, ConnectionError) and cause.errno:
        return os.strerror(cause.errno)  # asyncio's own text is "Connect call failed (...)"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
