"""Serve a small Hugging Face hub on 127.0.0.1 to the real huggingface_hub client, with failures on request."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".pth", ".bin", ".gguf", "tokenizer.json")


@dataclass
class Repo:
    """A repository: its files and, if set, the reasons why the hub refuses them."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    gated: bool = False
    token: str | None = None
    branches: tuple[str, ...] = ("main",)

    def knows(self, revision: str) -> bool:
        return revision in (*self.branches, self.commit)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """Faults in the next GETs of a large file: the connection breaks after so many bytes, or slows to a trickle."""

    after: int
    times: int = 1
    then: str = "break"


def etag(name: str, data: bytes) -> str:
    """Return SHA-256 for large files, else git's blob id."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Hub"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.handle_any()

    def do_GET(self) -> None:
        self.handle_any()

    def handle_any(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.status:
            return self.reply(b"", status=self.server.status)
        if path.startswith("/cdn/"):
            return self.content(path.removeprefix("/cdn/"))
        api = path.startswith("/api/models/")
        pieces = path.removeprefix("/api/models/" if api else "/").split("/")
        repo = self.server.repos.get("/".join(pieces[:2]))
        if repo is None:
            return self.refuse(404 if self.server.tells_404 else 401, "RepoNotFound", "Repository not found")
        revision = unquote(pieces[3]) if len(pieces) > 3 else "main"  # a slash in it comes quoted
        if not repo.knows(revision):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api and pieces[2] == "revision":
            return self.info("/".join(pieces[:2]), repo)
        # As on the hub: everyone may see what is in a gated repository, and its files ask who you are.
        if repo.gated:
            known = "authorization" in self.headers
            return self.refuse(403 if known else 401, "GatedRepo", "Access to this model is restricted")
        if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        name = unquote("/".join(pieces[4:]))
        if name not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.resolve(repo, name)

    def info(self, id_: str, repo: Repo) -> None:
        siblings = []
        for name, data in repo.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": etag("", data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": etag(name, data), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        body = {"id": id_, "sha": repo.commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        self.reply(json.dumps(body).encode(), ("Content-Type", "application/json"))

    def resolve(self, repo: Repo, name: str) -> None:
        data = repo.files[name]
        headers = [("X-Repo-Commit", repo.commit), ("ETag", f'"{etag(name, data)}"')]
        if name.endswith(LARGE):
            sha = etag(name, data)
            self.server.blobs[sha] = data
            # Another host, as the content network is: a token must not go there.
            to = f"http://localhost:{self.server.server_port}/cdn/{sha}"
            headers += [("X-Linked-Size", str(len(data))), ("X-Linked-ETag", f'"{sha}"'), ("Location", to)]
            return self.reply(b"", *headers, status=302)
        return self.reply(data, *headers)

    def content(self, sha: str) -> None:
        data, start = self.server.blobs[sha], 0
        if given := self.headers.get("Range"):
            start = int(given.removeprefix("bytes=").split("-")[0])
        body = data[start:]
        self.send_response(206 if given else 200)
        if self.server.endless:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        if given:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        fault = self.server.fault
        if self.server.endless and self.command == "GET":
            while not self.server.closing.is_set():
                self.wfile.write(body or b"more")
        if self.command == "HEAD":
            return
        if fault is None or fault.times <= 0 or len(body) <= fault.after:
            self.wfile.write(body)
            return
        fault.times -= 1
        self.wfile.write(body[: fault.after])
        self.wfile.flush()
        self.server.faulted.set()
        if fault.then == "trickle":
            for byte in body[fault.after :]:
                if self.server.closing.is_set():
                    break
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
        self.close_connection = True

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = [("X-Error-Message", message)] + ([("X-Error-Code", code)] if code else [])
        self.reply(json.dumps({"error": message}).encode(), *headers, status=status)

    def reply(self, body: bytes, *headers: tuple[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@dataclass(eq=False)
class Hub(ThreadingHTTPServer):
    daemon_threads = True
    repos: dict[str, Repo]
    requests: list[Request] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    fault: Fault | None = None
    endless: bool = False
    """Repeat the bytes of large files for ever."""
    status: int = 0
    """The status to answer every request with."""
    tells_404: bool = True
    """Answer 404 for an unknown repository, as to users who are logged in, rather than 401."""

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.closing = threading.Event()
        self.faulted = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were requested."""
        names = {etag(name, data): name for repo in self.repos.values() for name, data in repo.files.items()}
        paths = [r.path for r in self.requests if r.method == "GET"]
        direct = {p.split("/", 5)[5] for p in paths if "/resolve/" in p}
        return direct | {names[p.removeprefix("/cdn/")] for p in paths if p.startswith("/cdn/")}


@contextmanager
def serving(repos: dict[str, Repo]) -> Iterator[Hub]:
    hub = Hub(repos)
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        thread.join()
        hub.server_close()
