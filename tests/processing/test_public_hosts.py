"""URLs from strangers: only public addresses are connected to, whatever a name or a redirect says."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from mllama_cli.core.errors import DownloadError, UsageError
from mllama_cli.processing.fetch import fetch_image
from mllama_cli.processing.limits import Limits
from mllama_cli.processing.public_hosts import PublicTransport, is_public
from tests.processing.pictures import file_of, noise
from tests.processing.server import serving

PATIENT = Limits(1 << 20, 60.0, 60.0)
PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
    "2001:db8::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::",
    "2001:0:53aa:64c:0:0:80ff:fffe", "100::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip


def test_private_and_special_addresses_are_told_apart_from_public_ones() -> None:
    assert [address for address in PRIVATE if is_public(address)] == []
    assert [address for address in PUBLIC if not is_public(address)] == []


def fetch(
    url: str, answer: Callable[[httpx.Request], httpx.Response], names: dict[str, list[str]]
) -> tuple[httpx.Response, list[httpx.Request]]:
    """Return the response to ``url``, and the requests that went out, where ``names`` are all there are."""
    sent: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return answer(request)

    async def resolve(host: str, port: int) -> list[str]:
        return names.get(host, [host])

    async def get() -> httpx.Response:
        transport = PublicTransport(httpx.MockTransport(respond), resolve)
        async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
            return await client.get(url)

    return asyncio.run(get()), sent


def test_the_checked_address_is_connected_to_under_the_name_that_was_asked_for() -> None:
    reply, sent = fetch(
        "https://pics.example:8443/a.png?x=1",
        lambda request: httpx.Response(200, text="here"),
        {"pics.example": ["2606:4700::1111"]},
    )
    assert reply.text == "here"
    assert str(sent[0].url) == "https://[2606:4700::1111]:8443/a.png?x=1"
    assert sent[0].headers["host"] == "pics.example:8443"
    assert sent[0].extensions["sni_hostname"] == "pics.example"


def test_the_next_address_is_tried_where_one_does_not_answer() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host != "8.8.4.4":
            raise httpx.ConnectError("unreachable")
        return httpx.Response(200, text="here")

    reply, sent = fetch("http://pics.example/", answer, {"pics.example": ["2606:4700::1111", "8.8.8.8", "8.8.4.4"]})
    assert (reply.text, len(sent)) == ("here", 3)


@pytest.mark.parametrize("found", [["10.0.0.7"], ["8.8.8.8", "127.0.0.1"], ["::ffff:169.254.169.254"]])
def test_a_name_with_a_private_address_is_refused_before_anything_is_sent(found: list[str]) -> None:
    with pytest.raises(UsageError, match="not public"):
        fetch("http://evil.example/", lambda request: pytest.fail("sent"), {"evil.example": found})


def test_a_redirect_is_checked_again() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "8.8.8.8"
        return httpx.Response(302, headers={"location": "http://inside.example:9200/"})

    with pytest.raises(UsageError, match=r"inside\.example has an address that is not public"):
        fetch("http://pics.example/", answer, {"pics.example": ["8.8.8.8"], "inside.example": ["192.168.0.9"]})


def test_a_relative_redirect_keeps_the_name() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/a":
            return httpx.Response(302, headers={"location": "/b"})
        return httpx.Response(200, text=request.headers["host"])

    reply, _ = fetch("http://pics.example/a", answer, {"pics.example": ["8.8.8.8"]})
    assert reply.text == "pics.example"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_this_machine_is_never_asked_under_any_of_its_names(host: str) -> None:
    with serving(file_of(noise())) as server:
        with pytest.raises((UsageError, DownloadError)):
            fetch_image(f"http://{host}:{server.server_port}/picture.png", PATIENT, public_only=True)
        assert server.requests == []


def test_a_proxy_is_not_used_as_it_would_resolve_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(file_of(noise())) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises((UsageError, DownloadError)):
            fetch_image("http://10.0.0.1/picture.png", PATIENT, public_only=True)
        assert server.requests == []
