"""A small object store on this machine, which fails when it is told to."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import uuid4

import pytest

BUCKET = "pictures"


class FaultyStore:
    """Moto's S3 behind a layer that answers some requests with 500, or late.

    Attributes:
        faults: for each request to come, seconds to wait before it fails; what is left is answered as it should.
        requests: the method and path of each request.
        after: whether requests fail after they were carried out, rather than before.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                pass

        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self.faults: list[float] = []
        self.requests: list[tuple[str, str]] = []
        self.after = False
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.address = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            fault = self.faults.pop(0) if self.faults else None
        if fault is None:
            return self._app(environ, start)
        if self.after:
            list(self._app(environ, lambda *_: lambda _: None))
        time.sleep(fault)
        start("500 Internal Server Error", [("Content-Type", "text/xml")])
        return [b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FaultyStore]:
    for module in ("moto.server", "s3fs", "pyarrow"):
        pytest.importorskip(module, reason=f"{module} is not installed (the extra peers)")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        server = FaultyStore()
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield server
        server.close()


@pytest.fixture
def s3(s3_server: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The store, of which a test uses the addresses that begin with ``prefix()``."""
    monkeypatch.setattr("mllama_cli.captioning.shards.retrying.BACK_OFF_SECONDS", (0.01,) * 6)
    yield s3_server
    s3_server.faults.clear()
    s3_server.after = False


@pytest.fixture
def prefix() -> str:
    """The address of an empty folder in the store."""
    return f"s3://{BUCKET}/{uuid4().hex}"
