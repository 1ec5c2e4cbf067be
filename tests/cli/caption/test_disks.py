"""`mllama caption` on disks that are full or may only be read."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.caption.folders import names
from tests.console import run_here


def small_disk(folder: Path, options: str) -> bool:
    """Mount a small file system there; False where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(4096))


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path, folder: Path) -> None:
    disk = tmp_path / "disk"
    if not small_disk(disk, "size=256k"):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        for picture in folder.glob("*.png"):
            shutil.copy(picture, disk)
        (disk / "drawing.txt").write_text("old\n")
        filler = disk / "filler"
        fill(filler)
        result = run_here("caption", str(disk), "--existing", "overwrite", "--workers", "0")
        assert result.code == 1
        assert "No space left on device" in result.err
        assert "run the same command again" in result.err
        assert (disk / "drawing.txt").read_text() == "old\n"
        filler.unlink()
        assert run_here("caption", str(disk), "--existing", "overwrite", "--workers", "0").code == 0
        assert "3 red circles" in (disk / "drawing.txt").read_text()
        assert names(disk) == [
            "card.png", "card.txt", "drawing 2.png", "drawing 2.txt", "drawing.png", "drawing.txt",
        ]  # fmt: skip
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_folder_that_may_only_be_read(tmp_path: Path, folder: Path) -> None:
    disk = tmp_path / "disk"
    if not small_disk(disk, "size=1m"):
        pytest.skip("mounting a small disk is not allowed here")
    try:
        shutil.copy(folder / "drawing.png", disk)
        shutil.copy(folder / "card.png", disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        result = run_here("caption", str(disk), "--workers", "0")
        assert result.code == 1
        assert result.err.count("Read-only file system") == 2
        assert run_here("caption", str(disk), "-o", str(tmp_path / "captions.jsonl"), "--workers", "0").code == 0
        assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)
