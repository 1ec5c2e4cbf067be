"""What a file system's errors mean."""

import errno
from pathlib import Path

import pytest

from mllama_cli.core.errors import CaptionError
from mllama_cli.system.files import exists, expanded, is_disk_full, is_file, is_folder, status_of


def test_a_full_disk_is_known_also_behind_an_error_of_ours() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    ours = CaptionError("x cannot be written")
    ours.__cause__ = full
    assert is_disk_full(full)
    assert is_disk_full(ours)
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    "name",
    [
        "~nosuch/x.png",
        "x" * 300,
        "y/" * 5000,
        "a\0b",
        "\ud800",
        "",
        "~",
        "~5 shapes?",
        "~no\0",
        "~\ud800",
        "file://[x.png",
        "/dev/null/x",
    ],
    ids=lambda name: repr(name[:20]),
)
def test_any_text_may_be_asked_about(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(expanded(name), Path)
    for path in (name, Path(name), expanded(name)):
        assert not is_file(path)
        assert is_folder(path) == exists(path) == (status_of(path) is not None)


def test_what_is_there_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("text")
    assert is_file(file)
    assert is_file(str(file))
    assert exists(file)
    assert not is_folder(file)
    assert is_folder(tmp_path)
