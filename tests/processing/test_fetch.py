"""Pictures by URL, from a server that behaves well or badly."""

import asyncio
import socket
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from mllama_cli import __version__
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.errors import DownloadError, ImageError, UsageError
from mllama_cli.processing.limits import Limits
from mllama_cli.processing.sources import read_image
from tests.processing.pictures import file_of, noise
from tests.processing.server import Server, serving

PICTURE = file_of(noise())
PATIENT = Limits(max_bytes=1 << 20, connect_seconds=60, total_seconds=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(PICTURE) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def refused(url: str, limits: Limits = PATIENT) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        read_image(url, limits=limits)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_picture_arrives_whole_and_we_say_who_asks(server: Server) -> None:
    url = f"{server.url}/picture.png?size=1"
    assert read_image(url) == ImagePart(PICTURE, url)
    assert server.requests[-1][1]["User-Agent"] == f"mllama/{__version__}"


def test_a_scheme_in_capitals(server: Server) -> None:
    assert read_image(f"{server.url}/picture.png".replace("http", "HTTP")).data == PICTURE


def test_a_redirect_is_followed(server: Server) -> None:
    assert read_image(f"{server.url}/moved").data == PICTURE


def test_a_picture_with_the_wrong_type_is_taken(server: Server) -> None:
    assert read_image(f"{server.url}/mislabelled").data == PICTURE


def test_inside_a_running_loop_as_in_notebooks(server: Server) -> None:
    async def cell() -> ImagePart:
        return read_image(f"{server.url}/picture.png")

    assert asyncio.run(cell()).data == PICTURE


def test_passwords_are_not_shown(server: Server) -> None:
    host = server.url.removeprefix("http://")
    part = read_image(f"http://me:secret@{host}/picture.png")
    assert part.name == f"http://***@{host}/picture.png"
    assert server.requests[-1][1]["Authorization"].startswith("Basic ")
    assert "secret" not in refused(f"http://me:secret@{host}/status/404").message


@pytest.mark.parametrize(
    ("status", "words", "hint"),
    [
        (404, "404 Not Found", "address"),
        (403, "403 Forbidden", "browser"),
        (401, "401", "login"),
        (503, "503", "later"),
    ],
)
def test_a_status_is_named(server: Server, status: int, words: str, hint: str) -> None:
    error = refused(f"{server.url}/status/{status}")
    assert f"the server answered {words}" in error.message
    assert hint in error.hint


def test_a_web_page_is_no_picture(server: Server) -> None:
    error = refused(f"{server.url}/page")
    assert error.message == f"{server.url}/page gave a web page (text/html), not a picture"
    assert "address of the picture itself" in error.hint


@pytest.mark.parametrize(("path", "what"), [("json", "JSON text (application/json)"), ("svg", "an SVG drawing")])
def test_another_thing_is_no_picture(server: Server, path: str, what: str) -> None:
    assert f"gave {what}" in refused(f"{server.url}/{path}").message


def test_a_long_page_is_refused_at_its_start(server: Server) -> None:
    assert "web page" in refused(f"{server.url}/longpage", Limits(1 << 40, 60, 60)).message


def test_an_empty_reply(server: Server) -> None:
    with pytest.raises(ImageError, match="is empty"):
        read_image(f"{server.url}/empty")


@pytest.mark.parametrize("path", ["endless", "liar"])
def test_an_endless_body_is_dropped_as_soon_as_it_passes_the_limit(server: Server, path: str) -> None:
    server.broken.clear()
    with pytest.raises(ImageError, match="is larger than 1 MiB"):
        read_image(f"{server.url}/{path}", limits=PATIENT)
    assert server.broken.wait(60)  # the connection was closed on the server


@pytest.mark.parametrize(
    "encoding", ["gzip", "gzip, gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip", "unknown"]
)
def test_a_compressed_body_is_refused_unread(server: Server, encoding: str) -> None:
    with pytest.raises(DownloadError, match=rf"compressed the picture \({encoding}\)"):
        read_image(f"{server.url}/packed/{quote(encoding)}")


def test_a_body_that_says_identity_is_taken_as_it_is(server: Server) -> None:
    with pytest.raises(DownloadError, match="gave"):
        read_image(f"{server.url}/packed/Identity")


def test_a_slow_server_has_the_whole_time_limit(server: Server) -> None:
    assert read_image(f"{server.url}/slow", limits=PATIENT).data == PICTURE


@pytest.mark.parametrize("path", ["drip", "dripheaders", "silent"])
def test_slow_servers_are_left_after_the_time_limit(server: Server, path: str) -> None:
    """None of them ever ends its reply: whoever waits for that hangs here."""
    server.broken.clear()
    error = refused(f"{server.url}/{path}", Limits(1 << 20, 60, 1))
    assert error.message == f"{server.url}/{path}: not there after 1 s"
    assert path == "silent" or server.broken.wait(60)  # the connection was closed in the middle of the reply


def test_a_server_that_never_accepts() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # fill the queue: further connections hang, as with a firewall that drops packets
            filler.setblocking(False)
            filler.connect_ex(address)
        try:
            error = refused(f"http://127.0.0.1:{address[1]}/a.png", Limits(1 << 20, 0.2, 60))
        finally:
            for filler in fillers:
                filler.close()
    assert error.message == "127.0.0.1 did not answer within 0.2 s"


def test_a_body_that_breaks_off(server: Server) -> None:
    assert "broke off" in refused(f"{server.url}/short").message


def test_redirects_in_a_circle(server: Server) -> None:
    assert "redirected more than 10 times" in refused(f"{server.url}/loop").message


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA"])
def test_a_redirect_may_only_lead_to_the_web(server: Server, to: str) -> None:
    error = refused(f"{server.url}/elsewhere?{to}")
    assert "redirected to an address that" in error.message or "broke off" in error.message


def test_nobody_listens() -> None:
    error = refused(f"http://127.0.0.1:{free_port()}/a.png")
    assert error.message == "cannot reach 127.0.0.1: Connection refused"


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refused("http://no-such-host.invalid/a.png")
    assert error.message == "cannot reach no-such-host.invalid: Name or service not known"


def test_https_to_a_server_without_it(server: Server) -> None:
    assert "cannot reach 127.0.0.1" in refused(server.url.replace("http", "https") + "/picture.png").message


@pytest.mark.parametrize(
    "url", ["http://", "http:///a.png", "https://[::1/a.png", "http://a:99999999/x", "http://a b/", "http://xn--/x"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="is not a valid URL"):
        read_image(url, limits=PATIENT)


def test_a_proxy_setting_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")
    assert "the proxy setting cannot be used" in refused("http://example.invalid/a.png").message
