"""Connect to public addresses alone, so that a URL from a stranger cannot reach into the network of this machine."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

from mllama_cli.core.errors import UsageError

Resolver = Callable[[str, int], Awaitable[list[str]]]

_NAT64 = ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, by the IPv4 address inside it if there is one.

    >>> [is_public(each) for each in ("8.8.8.8", "10.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254")]
    [True, False, False, False, False]
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip.teredo is not None:
            return False
        ip = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip.sixtofour or ip
    if isinstance(ip, IPv6Address) and ip.is_site_local:
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, in the order to try them. Raise httpx.ConnectError if it has none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class PublicTransport(httpx.AsyncBaseTransport):
    """Send each request, a redirected one too, to an address that was checked.

    The name is resolved once, here: a second look-up could give another address.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, resolve: Resolver = resolve) -> None:
        self._inner, self._resolve = inner, resolve

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.raw_host.decode("ascii")
        addresses = await self._resolve(host.strip("[]"), request.url.port or {"http": 80}.get(request.url.scheme, 443))
        if not all(map(is_public, addresses)):
            raise UsageError(
                f"{host} has an address that is not public, from which nothing is fetched here",
                "Give the picture itself instead of its address.",
            )
        failure: httpx.TransportError = httpx.ConnectError("the name has no address")
        for address in addresses:
            checked = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,  # with the name as Host
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._inner.handle_async_request(checked)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        await self._inner.aclose()
