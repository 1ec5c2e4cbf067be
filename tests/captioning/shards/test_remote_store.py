"""Shards and captions in an object store that fails now and then."""

import io
import random
from pathlib import Path
from types import ModuleType

import pytest

from mllama_cli.captioning.shards import remote_store
from mllama_cli.captioning.shards.entry import ReadOptions
from mllama_cli.captioning.shards.paths import find_shards
from mllama_cli.captioning.shards.reading import ShardRead, read_shards
from mllama_cli.captioning.shards.store import StoreError
from mllama_cli.captioning.shards.stores import store_of
from mllama_cli.core.errors import UsageError
from tests.captioning.shards.conftest import FaultyStore
from tests.captioning.shards.test_run import rows, run
from tests.shards import make_shards

FAILS = [0.0] * 200


def upload(folder: Path, prefix: str) -> None:
    store = store_of(prefix)
    for path in folder.iterdir():
        with path.open("rb") as file:
            assert store.publish(file, f"{prefix}/{path.name}")


def test_files_are_created_once_listed_and_removed(remote: FaultyStore, prefix: str) -> None:
    store = store_of(prefix)
    assert store.names(prefix) == []
    assert store.read(f"{prefix}/a") is None
    assert store.create(f"{prefix}/a", b"first")
    assert not store.create(f"{prefix}/a", b"second")
    assert store.read(f"{prefix}/a") == b"first"
    store.write(f"{prefix}/x/b", b"third")
    assert not store.publish(io.BytesIO(b"fourth"), f"{prefix}/x/b")
    assert sorted(store.names(f"{prefix}/")) == ["a", "x/b"]
    store.remove(f"{prefix}/a")
    store.remove(f"{prefix}/a")
    assert not store.exists(f"{prefix}/a")
    with pytest.raises(StoreError, match="no such file"):
        store.open(f"{prefix}/a")


def test_large_files_appear_whole_once(remote: FaultyStore, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "BLOCK_BYTES", 5 * 2**20)
    store, data = store_of(prefix), random.Random(1).randbytes(11 * 2**20)
    assert store.publish(io.BytesIO(data), f"{prefix}/large")
    assert not store.publish(io.BytesIO(bytes(len(data))), f"{prefix}/large")
    remote.faults += [0.0] * 3
    with store.open(f"{prefix}/large") as file:
        file.seek(7)
        remote.faults += [0.0] * 6
        assert file.read() == data[7:]


def test_what_seemed_to_fail_and_was_carried_out_counts(remote: FaultyStore, prefix: str) -> None:
    remote.faults, remote.after = [0.0], True
    assert store_of(prefix).create(f"{prefix}/a", b"ours")


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "429 Too Many Requests"])
def test_what_fails_for_a_while_is_asked_again(status: str, remote: FaultyStore, prefix: str) -> None:
    store, remote.status = store_of(prefix), status
    remote.faults += [0.0] * 3
    assert store.create(f"{prefix}/00412", b"ours")
    remote.faults += [0.0] * 3
    assert not store.create(f"{prefix}/00412", b"theirs")
    remote.faults += [0.0] * 3
    assert store.read(f"{prefix}/00412") == b"ours"
    remote.faults += [0.0] * 3
    assert store.names(prefix) == ["00412"]


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_who_has_no_right_is_told_at_once(status: str, remote: FaultyStore, prefix: str) -> None:
    store, remote.status = store_of(prefix), status
    remote.faults += [0.0]
    with pytest.raises(StoreError, match="the store refuses"):
        store.write(f"{prefix}/a", b"")
    assert not remote.faults


def test_a_bucket_that_is_not_there_is_told(remote: FaultyStore) -> None:
    address = f"{remote.scheme}://no-such-bucket/out/a"
    store = store_of(address)
    for write in (store.write, store.create):
        with pytest.raises(StoreError, match="there is no such bucket"):
            write(address, b"")
    with pytest.raises(StoreError, match="there is no such bucket"):
        store.publish(io.BytesIO(bytes(9 * 2**20)), address)


@pytest.mark.parametrize("place", ["s3"])
def test_a_name_that_no_bucket_has_is_told_at_once(remote: FaultyStore) -> None:
    before = len(remote.requests)
    with pytest.raises(StoreError, match="Invalid bucket name"):
        find_shards(["s3://Bad Bucket!/in/"])
    assert len(remote.requests) == before


def test_a_store_that_goes_on_failing_is_an_error(remote: FaultyStore, prefix: str) -> None:
    remote.faults += FAILS
    with pytest.raises(StoreError, match="the store failed 7 times"):
        store_of(prefix).write(f"{prefix}/a", b"")
    assert len(FAILS) - len(remote.faults) == 7, "a package must not try again by itself"


def test_a_late_answer_is_asked_for_again(remote: FaultyStore, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_store, "READ_SECONDS", 0.3)
    remote_store.RemoteStore.of.cache_clear()
    try:
        store = store_of(prefix)
        remote.faults += [1.0, 1.0]
        store.write(f"{prefix}/a", b"late")
        assert store.read(f"{prefix}/a") == b"late"
    finally:
        remote_store.RemoteStore.of.cache_clear()


def test_shards_of_a_store_that_fails_give_what_local_ones_give(
    remote: FaultyStore, prefix: str, tmp_path: Path
) -> None:
    make_shards(tmp_path / "in", 3, 2, 3)
    run(find_shards([str(tmp_path / "in")]), tmp_path / "out")
    upload(tmp_path / "in", prefix)
    rng = random.Random(5)

    class Failing(list[float]):
        """A tenth of all requests fail, and what needs several is tried again as a whole."""

        def __bool__(self) -> bool:
            return rng.random() < 0.1

        def pop(self, index: object = 0) -> float:
            return 0.0

    remote.faults = Failing()
    try:
        shards = find_shards([f"{prefix}/{{00000..00002}}.tar", f"{prefix}/*.parquet"])
        assert [shard.name for shard in find_shards([f"{prefix}/"])] == [shard.name for shard in shards]
        run_to(shards, f"{prefix}/out")
    finally:
        remote.faults = []
    store = store_of(prefix)
    (tmp_path / "copy").mkdir()
    for name in store.names(f"{prefix}/out"):
        with store.open(f"{prefix}/out/{name}") as file:
            (tmp_path / "copy" / name).write_bytes(file.read())
    assert rows(tmp_path / "copy") == rows(tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 5


def run_to(shards: list, address: str) -> None:  # type: ignore[type-arg]
    from mllama_cli.captioning.decoding import DecodingPool
    from mllama_cli.captioning.postprocess import Postprocess
    from mllama_cli.captioning.prompts import PromptTemplate
    from mllama_cli.captioning.shards.destination import ShardDestination
    from mllama_cli.captioning.shards.run import caption_shards, plan_shards
    from tests.captioning.shards.test_run import Reader

    store = store_of(address)
    plan = plan_shards(shards, store, address, "parquet")
    destination = ShardDestination(store, address, "parquet")
    prompt, options = PromptTemplate("How wide?"), ReadOptions()
    list(
        caption_shards(plan, plan.pending, Reader(), destination, prompt, Postprocess(), options, pool=DecodingPool(0))
    )


def test_shards_of_a_web_server_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    make_shards(tmp_path, 1, 0, 3)
    handler: type[SimpleHTTPRequestHandler] = type(
        "Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{{00000..00000}}.tar"
        *entries, end = list(read_shards(find_shards([address]), ReadOptions()))[1:]
        server.shutdown()
    assert end == ShardRead(find_shards([address])[0])
    assert len(entries) == 3


@pytest.mark.parametrize(("package", "scheme"), [("s3fs", "s3"), ("gcsfs", "gs"), ("aiohttp", "https")])
def test_a_missing_package_is_named(package: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")

    def absent(*_: object, **__: object) -> None:
        raise ImportError

    monkeypatch.setattr(fsspec, "filesystem", absent)
    remote_store.RemoteStore.of.cache_clear()
    with pytest.raises(UsageError, match=f"package {package}") as caught:
        store_of(f"{scheme}://bucket/x.tar")
    assert caught.value.hint == f"Run `pip install {package}`."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of fsspec's FTP without a host
def test_a_scheme_that_we_do_not_read_is_told() -> None:
    pytest.importorskip("fsspec")
    for scheme in ("ftp", "nosuch"):
        with pytest.raises(UsageError, match=f"cannot be read from {scheme}://"):
            find_shards([f"{scheme}://host/x.tar"])


def test_pyarrow_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from mllama_cli.captioning.shards.outputs import new_output

    absent: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "pyarrow", absent)
    with pytest.raises(UsageError, match="package pyarrow"):
        new_output("parquet", None)
