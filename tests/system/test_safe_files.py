"""One process at a time holds the lock on a file, files appear whole or not at all, and nothing else is harmed."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.system.locks import Lock, remove_abandoned_locks
from mllama_cli.system.safe_files import (
    UnsafeFileError,
    neighbor_name,
    open_marked,
    open_regular,
    read_regular,
    replacing,
)

HOLD = (
    "import sys\n"
    "from mllama_cli.system.locks import Lock\n"
    "lock = Lock.acquire_for(sys.argv[1])\n"
    "print('held' if lock else 'refused', flush=True)\n"
    "sys.stdin.read()\n"
)

WRITE = (
    "context = lock.replacing(sys.argv[1])\n"
    "file = context.__enter__()\n"
    "file.write(b'half')\n"
    "print('writing', flush=True)\n"
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


def write(lock: Lock, path: Path, text: str) -> None:
    with lock.replacing(str(path)) as file:
        file.write(text.encode())
    lock.release()


def acquired(path: Path) -> Lock:
    lock = Lock.acquire_for(str(path))
    assert lock is not None
    return lock


def test_a_caption_moves_to_its_path_and_leaves_nothing_else(tmp_path: Path) -> None:
    lock = acquired(tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()
    write(lock, tmp_path / "a.txt", "ein Hund, 犬\n")
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
    assert Lock.acquire_for(str(path)) is None
    process.kill()
    process.wait()
    write(acquired(path), path, "mine\n")
    assert path.read_text() == "mine\n"
    assert listing(tmp_path) == ["a.txt"]


def test_within_one_process_too(tmp_path: Path) -> None:
    first = acquired(tmp_path / "a.txt")
    assert Lock.acquire_for(str(tmp_path / "a.txt")) is None
    first.release()
    acquired(tmp_path / "a.txt").release()


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for take_over in (True, False):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD.replace("sys.stdin.read()", WRITE), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == ["held\n", "writing\n"]
        remove_abandoned_locks(str(tmp_path))
        assert len(listing(tmp_path)) == 2, "what is in use stays"
        process.kill()
        process.wait()
        if take_over:
            acquired(path).release()
        else:
            remove_abandoned_locks(str(tmp_path))
        assert listing(tmp_path) == []


def test_a_disk_that_takes_no_more_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old\n")
    lock = acquired(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(lock, path, "new\n")
    lock.release()
    assert listing(tmp_path) == ["a.txt"]
    assert path.read_text() == "old\n"


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "fifo", "text", "marked at the end"])
def test_what_is_not_ours_is_not_touched(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    acquiring = acquired(target)
    (name,) = listing(tmp_path)
    acquiring.release()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / name
    plant(kind, planted, victim)
    before = state(tmp_path)
    for call in (
        lambda: Lock.acquire_for(str(target)),
        lambda: open_marked(str(planted), b"# mark"),
        lambda: remove_abandoned_locks(str(tmp_path)),
    ):
        if kind == "fifo" and call.__code__.co_names[0] == "open_marked":
            continue  # nothing can be lost there
        with contextlib.suppress(OSError):
            assert call() is None
        assert state(tmp_path) == before
    if kind not in ("text", "marked at the end"):
        with pytest.raises(UnsafeFileError):
            open_regular(str(planted), create=True)
        assert state(tmp_path) == before


def plant(kind: str, path: Path, victim: Path) -> None:
    match kind:
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(victim.with_name("nothing"))
        case "hard link":
            os.link(victim, path)
        case "folder":
            path.mkdir()
            (path / "file").write_text("precious")
        case "fifo":
            os.mkfifo(path)
        case "marked at the end":
            path.write_text("precious\nmllama lock\n0123456789abcdef\n# mark")
        case _:
            path.write_text("precious")


def state(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def test_a_lock_names_no_file_of_another(tmp_path: Path) -> None:
    lock = acquired(tmp_path / "a.txt")
    (name,) = listing(tmp_path)
    random = (tmp_path / name).read_bytes().split()[-1].decode()
    lock.release()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".mllama-{random}.tmp").symlink_to(tmp_path / "victim")
    for second in ("../../victim", "victim", random):
        (tmp_path / name).write_text(f"mllama lock\n{second}\n")
        with contextlib.suppress(UnsafeFileError):
            acquired(tmp_path / "a.txt").release()
        assert (tmp_path / "victim").read_text() == "precious"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.txt").symlink_to(tmp_path / "victim")
    with replacing(str(tmp_path / "a.txt")) as file:
        file.write(b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("length", [1, 200, 245, 251, 255])
@pytest.mark.parametrize("letter", ["x", "é", "犬"])
def test_names_of_any_length_have_locks_and_neighbors(length: int, letter: str, tmp_path: Path) -> None:
    name = (letter * length).encode()[:length].decode("utf-8", "ignore")
    path = tmp_path / (name or "x")
    write(acquired(path), path, "text")
    assert [path.name] == listing(tmp_path)
    assert len(os.fsencode(neighbor_name(path.name, ".partial"))) <= 255


def test_what_is_read_is_regular_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "fifo")
    assert read_regular(str(tmp_path / "a"), 5) == read_regular(str(tmp_path / "b"), 5, follow=True) == b"12345"
    for path, limit in (("a", 4), ("b", 5), ("fifo", 5), (".", 5)):
        with pytest.raises(OSError, match=r"larger|link|regular|directory"):
            read_regular(str(tmp_path / path), limit)
    with pytest.raises(OSError, match="regular"):
        read_regular("/dev/zero", 5, follow=True)
