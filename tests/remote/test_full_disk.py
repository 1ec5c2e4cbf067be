"""A full disk: an engine that runs goes on, and one that cannot be started says so and leaves nothing."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mllama_cli.core.errors import EngineError
from mllama_cli.remote.engines import EngineKey, find, running
from mllama_cli.remote.start import start
from mllama_cli.remote.stop import stop
from mllama_cli.system.loopback import listen_on_loopback
from mllama_cli.system.private_sockets import make_private_folder
from tests.remote.test_background import answer

DISK_BYTES = 32 * 1024


@contextmanager
def disk_at(folder: Path) -> Iterator[None]:
    """Mount a small disk, where this user may."""
    options = f"size={DISK_BYTES},mode=700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root mounts a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "full").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))
    with pytest.raises(OSError, match="No space left"):
        (folder / "more").write_bytes(bytes(5000))


@contextmanager
def no_room() -> Iterator[None]:
    """Let no file of this process grow, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_engine_starts_and_answers_without_room_for_its_messages(sockets: Path, key: EngineKey) -> None:
    state = Path(os.environ["XDG_STATE_HOME"])
    with disk_at(state):
        fill(state)
        assert answer(start("sketch", key, 600))
        (address,) = running()
        stop(address)
        assert running() == []


def test_an_engine_goes_on_when_all_disks_have_filled(sockets: Path, key: EngineKey) -> None:
    state, run = Path(os.environ["XDG_STATE_HOME"]), sockets.parent
    with disk_at(state), disk_at(run):
        started = start("sketch", key, 600)
        before = answer(started)
        fill(state)
        fill(run)
        found = find(key)
        assert found is not None
        assert found.info.pid == started.info.pid
        assert answer(found) == before
        (address,) = running()
        stop(address)
        assert running() == []


def test_an_engine_that_has_no_room_for_its_lock_is_told_and_leaves_nothing(sockets: Path, key: EngineKey) -> None:
    make_private_folder(sockets)
    with no_room(), pytest.raises(EngineError, match=r"cannot be started: .*: File too large") as raised:
        start("sketch", key, 600)
    assert "--keep-alive" in raised.value.hint
    assert list(sockets.iterdir()) == []


def test_a_port_that_cannot_be_recorded_leaves_no_record(tmp_path: Path) -> None:
    with no_room(), pytest.raises(OSError, match="File too large"):
        listen_on_loopback(tmp_path / "a.sock", 1)
    assert list(tmp_path.iterdir()) == []
