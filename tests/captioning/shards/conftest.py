"""Small object stores on this machine, which fail when they are told to."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.captioning.shards.google_store import GoogleStore

BUCKET = "pictures"


class FaultyStore:
    """An object store behind a layer that answers some requests with an error, or late.

    Attributes:
        faults: for each request to come, seconds to wait before it fails; what is left is answered as it should.
        status: what is answered then.
        requests: the method and path of each request.
        after: whether requests fail after they were carried out, rather than before.
    """

    def __init__(self, scheme: str, app: Any) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                pass

        self.scheme, self._app = scheme, app
        self.requests: list[tuple[str, str]] = []
        self.heal()
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.address = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def heal(self) -> None:
        """Let no request fail that is still to come."""
        self.faults: list[float] = []
        self.status, self.after = "500 Internal Server Error", False

    def close(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            fault = self.faults.pop(0) if self.faults else None
        if fault is None:
            return self._app(environ, start)  # type: ignore[no-any-return]
        if self.after:
            list(self._app(environ, lambda *_: lambda _: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        time.sleep(fault)
        start(self.status, [("Content-Type", "text/xml")])
        code = "AccessDenied" if self.status[:3] in ("401", "403") else "InternalError"
        return [f"<Error><Code>{code}</Code><Message>It did not work.</Message></Error>".encode()]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FaultyStore]:
    for module in ("moto.server", "s3fs", "pyarrow"):
        pytest.importorskip(module, reason=f"{module} is not installed (the extra peers)")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        server = FaultyStore("s3", DomainDispatcherApplication(create_backend_app))
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)
        yield server
        server.close()


@pytest.fixture(scope="session")
def gs_server() -> Iterator[FaultyStore]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask Google what the bucket is like
        for module in ("werkzeug", "gcsfs", "pyarrow"):
            pytest.importorskip(module, reason=f"{module} is not installed (the extra peers)")
        server = FaultyStore("gs", GoogleStore(BUCKET))
        patch.setenv("STORAGE_EMULATOR_HOST", server.address)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.close()


@pytest.fixture(params=["s3", "gs"])
def place(request: pytest.FixtureRequest) -> str:
    """The scheme of the store that a test uses."""
    return str(request.param)


@pytest.fixture
def remote(place: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """The store, of which a test uses the addresses that begin with ``prefix``."""
    server: FaultyStore = request.getfixturevalue(f"{place}_server")
    monkeypatch.setattr("mllama_cli.captioning.shards.retrying.BACK_OFF_SECONDS", (0.01,) * 6)
    yield server
    server.heal()


@pytest.fixture
def prefix(remote: FaultyStore) -> str:
    """The address of an empty folder in the store."""
    return f"{remote.scheme}://{BUCKET}/{uuid4().hex}"
