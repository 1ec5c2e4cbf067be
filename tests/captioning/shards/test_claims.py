"""Shards that workers share out among themselves."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mllama_cli.captioning.shards import claims
from mllama_cli.captioning.shards.claims import Claims
from mllama_cli.captioning.shards.entry import Shard
from mllama_cli.captioning.shards.paths import find_shards
from mllama_cli.captioning.shards.store import LocalStore, Store
from mllama_cli.captioning.shards.stores import store_of
from tests.captioning.shards.conftest import FaultyStore
from tests.captioning.shards.test_run import rows, run
from tests.serving.running import wait_until
from tests.shards import make_shards

SHARDS = [Shard(f"in/{name}.tar", name, "tar") for name in "abcd"]


@pytest.fixture(params=["local", "s3", "gs"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if place == "local" else str(request.getfixturevalue("prefix"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_SECONDS", 0.05), ("STALE_SECONDS", 0.6), ("LIST_SECONDS", 0.2)):
        monkeypatch.setattr(claims, name, seconds)


def worker(folder: str, name: str) -> Claims:
    return Claims(store_of(folder), folder, SHARDS, ".parquet", name)


def finish(store: Store, folder: str, shard: Shard) -> None:
    assert store.create(f"{folder}/{shard.name}.parquet", b"done")


def taken(shards: Iterator[Shard | None]) -> Shard:
    return next(shard for shard in shards if shard is not None)


def test_two_workers_take_each_shard_once_and_leave_no_lease(folder: str) -> None:
    store, mine = store_of(folder), {"one": set[str](), "two": set[str]()}
    with worker(folder, "one") as one, worker(folder, "two") as two:
        turns = {"one": (one, one.take()), "two": (two, two.take())}
        while turns:
            for name, (shared, shards) in list(turns.items()):
                shard = next(shards, False)
                if shard is False:
                    del turns[name]
                elif isinstance(shard, Shard):
                    mine[name].add(shard.name)
                    finish(store, folder, shard)
                    shared.release(shard.name)
    assert len(mine["one"]) == len(mine["two"]) == 2
    assert mine["one"] | mine["two"] == set("abcd")
    assert sorted(store.names(folder)) == [f"{name}.parquet" for name in "abcd"]


def test_a_lease_that_is_renewed_is_left_alone_and_one_of_a_dead_worker_is_taken_over(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = store_of(folder), [0.0]
    monkeypatch.setattr(claims, "monotonic", lambda: now[0])
    alive = worker(folder, "alive")
    with alive, worker(folder, "other") as other:
        held = taken(alive.take())
        shards = other.take()
        for _ in range(3):
            shard = taken(shards)
            assert shard != held
            finish(store, folder, shard)
            other.release(shard.name)
        lease = f"{folder}/{claims.CLAIMS}/{held.name}.1"
        assert next(shards) is None
        for _ in range(4):
            before = store.read(lease)
            wait_until(lambda known=before: store.read(lease) != known)
            now[0] += 0.9 * claims.STALE_SECONDS
            assert next(shards) is None
        alive._stopped.set()  # as if it had been killed
        alive._held.clear()
        while (shard := next(shards)) is None:
            now[0] += 0.9 * claims.STALE_SECONDS
        assert shard == held
        finish(store, folder, held)
        other.release(held.name)
        assert next(shards, "end") == "end"
    assert not [name for name in store.names(folder) if name.startswith(claims.CLAIMS)]


def test_a_shard_that_was_done_meanwhile_is_not_taken(folder: str) -> None:
    store = store_of(folder)
    with worker(folder, "one") as one:
        shards = one.take()
        done = {taken(shards).name}
        for shard in SHARDS:
            if shard.name not in done:
                finish(store, folder, shard)
        finish(store, folder, next(shard for shard in SHARDS if shard.name in done))
        one.release(done.pop())
        assert next(shards, "end") == "end"
    assert not [name for name in store.names(folder) if name.startswith(claims.CLAIMS)]


def test_a_worker_that_is_stopped_leaves_its_shards_to_others(folder: str) -> None:
    with worker(folder, "one") as one:
        taken(one.take())
    assert store_of(folder).names(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("place", "attempts"), [("local", 18), ("s3", 6), ("gs", 6)])
def test_workers_killed_at_random_moments_lose_and_repeat_nothing(
    place: str, attempts: int, folder: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    make_shards(tmp_path / "in", 20, 5, 5)
    run(find_shards([str(tmp_path / "in")]), tmp_path / "whole")
    server: FaultyStore | None = request.getfixturevalue("remote") if place != "local" else None
    rng = random.Random(11)
    logs = [tmp_path / f"{number}.log" for number in range(3 + attempts)]
    unused = iter(logs)

    def started() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.captioning.shards.worker", str(tmp_path / "in"), folder]
        with next(unused).open("w") as log:
            return subprocess.Popen(command, stderr=log)

    workers = [started() for _ in range(3)]
    kills = 0
    for _ in range(attempts):
        time.sleep(rng.uniform(0.1, 0.6))
        if server is not None:
            server.faults = [0.0] * rng.randrange(3)
        index = rng.randrange(3)
        workers[index].kill()
        kills += workers[index].wait() == -signal.SIGKILL
        workers[index] = started()
    assert kills >= attempts // 3
    assert [each.wait() for each in workers] == [0, 0, 0], "".join(log.read_text()[-1000:] for log in logs)
    store = store_of(folder)
    names = store.names(folder)
    assert not [name for name in names if not name.endswith(".parquet")]
    (tmp_path / "copy").mkdir()
    for name in names:
        with store.open(f"{folder}/{name}") as file:
            (tmp_path / "copy" / name).write_bytes(file.read())
    assert rows(tmp_path / "copy") == rows(tmp_path / "whole")
    if isinstance(store, LocalStore):  # a worker that is killed while it publishes leaves its temporary file
        assert len([path for path in Path(folder).iterdir() if path.suffix == ".tmp"]) <= kills
