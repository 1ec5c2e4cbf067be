"""One run at a time holds the lock on a caption file, and a caption appears whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.captioning.locks import CaptionLock

HOLD = (
    "import sys\n"
    "from mllama_cli.captioning.locks import CaptionLock\n"
    "lock = CaptionLock.acquire(sys.argv[1])\n"
    "print('held' if lock else 'refused', flush=True)\n"
    "sys.stdin.read()\n"
)


def holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def listing(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def acquired(path: Path) -> CaptionLock:
    lock = CaptionLock.acquire(str(path))
    assert lock is not None
    return lock


def test_a_caption_moves_to_its_path_and_leaves_nothing_else(tmp_path: Path) -> None:
    lock = acquired(tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()
    lock.write("ein Hund, 犬\n")
    assert listing(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == "ein Hund, 犬\n".encode()


def test_without_a_caption_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old\n")
    acquired(tmp_path / "a.txt").release()
    assert listing(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old\n"


def test_another_process_is_kept_out_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    process = holder(path)
    assert CaptionLock.acquire(str(path)) is None
    process.kill()
    process.wait()
    acquired(path).write("mine\n")
    assert path.read_text() == "mine\n"
    assert listing(tmp_path) == ["a.txt"]


def test_within_one_process_too(tmp_path: Path) -> None:
    first = acquired(tmp_path / "a.txt")
    assert CaptionLock.acquire(str(tmp_path / "a.txt")) is None
    first.write("x\n")
    acquired(tmp_path / "a.txt").release()


def test_a_longer_leftover_of_a_killed_run_does_not_show_through(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.mllama").write_text("a long unfinished text of a run that was killed")
    acquired(tmp_path / "a.txt").write("short\n")
    assert (tmp_path / "a.txt").read_text() == "short\n"


def test_a_disk_that_takes_no_more_leaves_the_old_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old\n")
    lock = acquired(tmp_path / "a.txt")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        lock.write("new\n")
    assert listing(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old\n"
