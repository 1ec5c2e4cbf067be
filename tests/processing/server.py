"""A web server on 127.0.0.1 that behaves well or badly, by path."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, body: bytes, kind: str, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        try:
            getattr(self, "get_" + self.path.partition("?")[0].strip("/").split("/")[0].split(".")[0])()
        except (BrokenPipeError, ConnectionResetError):
            self.server.broken.set()
        finally:
            self.close_connection = True

    def get_picture(self) -> None:
        self.reply(self.server.picture, "image/png")

    def get_mislabelled(self) -> None:
        self.reply(self.server.picture, "text/html; charset=utf-8")

    def get_page(self) -> None:
        self.reply(b"<!doctype html><html><body>a gallery</body></html>", "text/html; charset=utf-8")

    def get_longpage(self) -> None:
        self.endless(b"<!doctype html><html>" + b"<p>more</p>" * 1000, "text/html")

    def get_json(self) -> None:
        self.reply(b'{"error": "no"}', "application/json")

    def get_svg(self) -> None:
        self.reply(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml")

    def get_empty(self) -> None:
        self.reply(b"", "image/png")

    def get_status(self) -> None:
        self.reply(b"<html>no</html>", "text/html", int(self.path.rsplit("/", 1)[1]))

    def get_loop(self) -> None:
        self.redirect("/loop")

    def get_moved(self) -> None:
        self.redirect("/picture.png")

    def get_elsewhere(self) -> None:
        self.redirect(self.path.partition("?")[2])

    def get_short(self) -> None:
        self.reply(self.server.picture[:20], "image/png", length=len(self.server.picture))

    def get_endless(self) -> None:
        self.endless(b"\x89PNG" + bytes(65536), "image/png")

    def get_liar(self) -> None:
        """Says 10 bytes in a header of its own, gives more: nothing in the reply may be trusted."""
        self.endless(b"\x89PNG" + bytes(65536), "image/png", ("X-Content-Length", "10"))

    def endless(self, chunk: bytes, kind: str, *headers: tuple[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.server.closing.is_set():
            self.wfile.write(chunk)

    def get_packed(self) -> None:
        """Kilobytes that unfold to a gigabyte, in the encodings that the path names."""
        body = gzip.compress(gzip.compress(bytes(1 << 20)) * 1000)
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Encoding", unquote(self.path.rsplit("/", 1)[1]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def get_drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.drip()

    def get_dripheaders(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.drip()

    def drip(self) -> None:
        while not self.server.closing.is_set():
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.02)

    def get_silent(self) -> None:
        self.server.closing.wait()

    def get_slow(self) -> None:
        half = len(self.server.picture) // 2
        self.reply(self.server.picture[:half], "image/png", length=len(self.server.picture))
        self.wfile.flush()
        time.sleep(0.2)
        self.wfile.write(self.server.picture[half:])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, picture: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.picture = picture
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.broken = threading.Event()
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(picture: bytes) -> Iterator[Server]:
    server = Server(picture)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
