"""Compiled kernels in the user's cache folder: nothing that another user could have written is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mllama_cli.kernels.cpu import build

pytestmark = [
    pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cache folder is moved by a variable of Linux"),
]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """Return the cache folder of a library without kernels, which compiles quickly.

    tests/kernels/test_cpu_native.py compiles and loads the real one.
    """
    source = tmp_path_factory.mktemp("source") / "kernels.cpp"
    source.write_text(f'extern "C" int mllama_version() {{ return {build.INTERFACE}; }}\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "SOURCE", source)
    return tmp_path / "mllama" / "kernels"


def elsewhere() -> list[str]:
    """Return the command that loads the library in its own process."""
    lines = [
        "from pathlib import Path",
        "from mllama_cli.kernels.cpu import build",
        f"build.SOURCE = Path({str(build.SOURCE)!r})",
        "assert build.library()",
    ]
    return [sys.executable, "-c", "\n".join(lines)]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collect the folders of compilations."""
    seen: list[Path] = []
    original = build._compile

    def counted(compiler: list[str], machine: list[str], folder: Path, key: str) -> Path | None:
        seen.append(folder)
        return original(compiler, machine, folder, key)

    monkeypatch.setattr(build, "_compile", counted)
    return seen


def test_compiled_once_for_us_alone(folder: Path, compilations: list[Path]) -> None:
    assert build.library()
    assert build.library()
    assert compilations == [folder]
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o700


def test_another_source_compiler_or_processor_is_compiled_for_itself(
    folder: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build.library()
    other = tmp_path / "kernels.cpp"
    other.write_text(build.SOURCE.read_text() + "\n// changed\n")
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCE", other)
        build.library()
    with monkeypatch.context() as patch:
        patch.setattr(build, "_cpu", lambda: "another processor")
        build.library()
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "c++ -fno-plt")
        build.library()
    assert len(compilations) == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("damage", ["shortened", "changed", "emptied"])
def test_a_damaged_file_is_made_again(folder: Path, compilations: list[Path], damage: str) -> None:
    # In another process, since the file is mapped into this one.
    subprocess.run(elsewhere(), check=True)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"shortened": whole[:5000], "changed": whole[:-1] + b"\1", "emptied": b""}[damage])
    subprocess.run(elsewhere(), check=True)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_not_used(folder: Path, compilations: list[Path], mode: int) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert build.library(), "a private folder serves"
    assert compilations[0] != folder
    assert not compilations[0].exists()
    assert not list(folder.iterdir())


def test_nor_one_inside_a_world_writable_folder(tmp_path: Path, compilations: list[Path], folder: Path) -> None:
    tmp_path.chmod(0o777)
    assert build.library()
    assert compilations[0] != folder
    tmp_path.chmod(0o1777)  # like /tmp, where only owners may rename
    assert build.library()
    assert compilations[1] == folder


def test_nor_a_link_to_one(folder: Path, compilations: list[Path], tmp_path: Path) -> None:
    folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert build.library()
    assert compilations[0] != folder


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_nothing_of_another_owner_is_loaded(folder: Path, compilations: list[Path]) -> None:
    build.library()
    (file,) = folder.iterdir()
    os.chown(file, 12345, -1)
    assert build.library()
    assert compilations == [folder, folder]
    assert file.stat().st_uid == os.geteuid()
    os.chown(folder, 12345, -1)
    assert build.library()
    assert compilations[2] != folder


def test_nor_a_file_that_others_may_write_to(folder: Path, compilations: list[Path]) -> None:
    build.library()
    (file,) = folder.iterdir()
    file.chmod(0o722)
    build.library()
    assert len(compilations) == 2
    assert file.stat().st_mode & 0o777 == 0o700


def test_several_processes_at_once(folder: Path) -> None:
    several = [subprocess.Popen(elsewhere()) for _ in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    assert {file.suffix for file in folder.iterdir()} == {".so"}


def test_no_compiler_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "does-not-exist")
    assert build.library() is None
    assert not folder.exists()


def test_a_compiler_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert build.library() is None
    assert not list(folder.iterdir())
