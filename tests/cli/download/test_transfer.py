"""`mllama download` with the real huggingface_hub client: bytes that come, break off, are damaged or find no room."""

import errno
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.download.user import NAME, SHARDS, WANTED, User, assert_fails
from tests.console import SCRIPT, run_here, run_script
from tests.hub_server import Fault
from tests.serving.running import wait_until

NO_PROCESS = 2**30
"""Larger than any process id."""


def bytes_so_far(cache: Path) -> int:
    """Return the size of what is partly downloaded; 0 if a file becomes whole meanwhile."""
    with suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in cache.rglob("*.incomplete"))
    return 0


def test_whole_download_fetches_what_is_needed_and_nothing_else(user: User) -> None:
    result = user.run(NAME)
    assert (result.code, result.out) == (0, f"{user.snapshot}\n"), result.err
    assert {str(f.relative_to(user.snapshot)) for f in user.snapshot.rglob("*")} == WANTED
    assert user.has_whole_model()
    assert user.hub.fetched() == WANTED
    assert (user.repo / "refs" / "main").read_text() == "a" * 40
    assert not list(user.repo.rglob("*.incomplete"))
    assert "\x1b" not in result.err


def test_second_run_fetches_no_byte_again(user: User) -> None:
    first = user.run(NAME)
    user.hub.requests.clear()
    second = run_script("pull", NAME, env=user.env)
    assert (second.code, second.out, second.err) == (0, first.out, "")
    assert user.hub.fetched() == set()


def test_a_new_commit_takes_over_the_bytes_that_did_not_change(user: User) -> None:
    user.run(NAME)
    repo = user.hub.repos[NAME]
    repo.commit = "b" * 40
    repo.files["README.md"] = b"A better text."
    user.hub.requests.clear()
    result = user.run(NAME)
    assert result.out == f"{user.snapshot}\n"
    assert user.has_whole_model()
    assert not set(SHARDS) & user.hub.fetched()


def test_broken_connection_is_taken_up_where_it_broke(user: User) -> None:
    user.hub.fault = Fault(after=1_500_000, times=2)
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()
    ranges = [r.headers["range"] for r in user.hub.requests if r.path.startswith("/cdn/") and "range" in r.headers]
    assert len(ranges) == 2
    assert all(int(given.removeprefix("bytes=").rstrip("-")) > 1_000_000 for given in ranges)


def test_ctrl_c_keeps_what_came_and_the_next_run_goes_on(user: User) -> None:
    user.hub.fault = Fault(after=2_000_000, times=2, then="trickle")
    with subprocess.Popen(
        [SCRIPT, "download", NAME],
        env={**os.environ, **user.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: bytes_so_far(user.cache) > 3_000_000)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    assert not (user.repo / "refs" / "main").exists()  # no half model under the name of a whole one
    user.hub.requests.clear()
    shown = user.run(NAME, "--dry-run")
    assert "already cached" in shown.out
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()
    ranges = [r.headers["range"] for r in user.hub.requests if r.path.startswith("/cdn/") and "range" in r.headers]
    assert len(ranges) == 2
    assert all(int(given.removeprefix("bytes=").rstrip("-")) > 1_000_000 for given in ranges)


def test_damaged_bytes_are_thrown_away(user: User) -> None:
    """The checksum reveals a partial file of other content, and the next run downloads it again."""
    user.run(NAME)
    (user.snapshot / SHARDS[0]).unlink()
    user.leave_partial(SHARDS[0], bytes(1_000_000), pid=NO_PROCESS)
    assert_fails(user.run(NAME), 1, "checksum mismatch; the partial file was deleted", "same command again")
    assert user.run(NAME).code == 0
    assert user.has_whole_model()


def test_a_partial_file_of_a_process_at_work_is_left_alone(user: User) -> None:
    """As where the lock does not hold: each process has a file of its own, and neither writes into the other's."""
    data = user.hub.repos[NAME].files[SHARDS[0]]
    theirs = user.leave_partial(SHARDS[0], data[:1_000_000], pid=os.getpid())
    with theirs.open("ab") as still_writing:
        result = user.run(NAME)
        still_writing.write(b"more")
    assert result.code == 0, result.err
    assert user.has_whole_model()
    assert not any("range" in r.headers for r in user.hub.requests if r.path.startswith("/cdn/"))
    assert not list(user.repo.rglob("*.incomplete")), "of no use any more"


def test_an_old_partial_file_is_resumed_no_matter_who_wrote_it(user: User) -> None:
    left = user.leave_partial(SHARDS[0], user.hub.repos[NAME].files[SHARDS[0]][:1_000_000], pid=os.getpid())
    an_hour_ago = time.time() - 3600
    os.utime(left, (an_hour_ago, an_hour_ago))
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()
    ranges = [r.headers["range"] for r in user.hub.requests if r.path.startswith("/cdn/") and "range" in r.headers]
    assert ranges == ["bytes=1000000-"]


def test_too_small_a_disk_is_said_before_anything_is_fetched(here: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.hub.plan.free_space", lambda folder: 5_000_000)
    assert_fails(run_here("download", NAME), 1, "has 5.0 MB free", "needs 6.0 MB more", "HF_HOME")
    assert not set(SHARDS) & here.hub.fetched()


def test_disk_that_fills_up_on_the_way(here: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, start: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mllama_cli.hub.transfer.Transfer._stream", full)
    assert_fails(run_here("download", NAME), 1, "disk is full", "kept")


def test_endless_files_are_taken_up_to_their_size(user: User) -> None:
    user.hub.repos[NAME].files["LICENSE.txt"] = b""
    user.hub.endless = True
    result = user.run(NAME)
    assert result.code == 0, result.err
    assert user.has_whole_model()
