"""Compiled kernels in the user's cache folder: nothing that another user could have written is loaded."""

import ctypes
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from mllama_cli.kernels.cpu import build
from mllama_cli.kernels.cpu.compiler import find_compiler

pytestmark = [
    pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler"),
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


def library() -> ctypes.CDLL | None:
    return build.build_library().library


def assert_loaded_for_once(why: str) -> None:
    built = build.build_library()
    assert built.library, "a private folder serves"
    assert "at every start" in built.note
    assert why in built.note


def elsewhere() -> list[str]:
    """Return the command that loads the library in its own process."""
    lines = [
        "from pathlib import Path",
        "from mllama_cli.kernels.cpu import build",
        f"build.SOURCE = Path({str(build.SOURCE)!r})",
        "assert build.build_library().library",
    ]
    return [sys.executable, "-c", "\n".join(lines)]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the commands of compilations."""
    seen: list[list[str]] = []
    original = build._compiled

    def counted(command: list[str]) -> bytes:
        seen.append(command)
        return original(command)

    monkeypatch.setattr(build, "_compiled", counted)
    return seen


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes CXX a script that answers --version, then does as told, and writes down that it ran.

    ``real`` in the script is the real compiler's command. The file that the function returns has a line for each run.
    """

    def make(script: str) -> Path:
        file, log = tmp_path / "compiler", tmp_path / "log"
        real = " ".join(find_compiler() or [])
        file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\nreal="{real}"\necho run >> {log}\n{script}\n')
        file.chmod(0o755)
        monkeypatch.setenv("CXX", str(file))
        return log

    return make


def test_compiled_once_for_us_alone(folder: Path, compilations: list[list[str]]) -> None:
    assert library()
    assert library()
    assert len(compilations) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o700


def test_another_source_compiler_or_processor_is_compiled_for_itself(
    folder: Path, compilations: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library()
    other = tmp_path / "kernels.cpp"
    other.write_text(build.SOURCE.read_text() + "\n// changed\n")
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCE", other)
        library()
    with monkeypatch.context() as patch:
        patch.setattr(build, "_cpu", lambda: "another processor")
        library()
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "c++ -fno-plt")
        library()
    assert len(compilations) == len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("damage", ["shortened", "changed", "emptied"])
def test_a_damaged_file_is_made_again(folder: Path, compilations: list[list[str]], damage: str) -> None:
    # In another process, since the file is mapped into this one.
    subprocess.run(elsewhere(), check=True)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"shortened": whole[:5000], "changed": whole[:-1] + b"\1", "emptied": b""}[damage])
    subprocess.run(elsewhere(), check=True)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_not_used(folder: Path, mode: int) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert_loaded_for_once("can be written by others")
    assert not list(folder.iterdir())


def test_nor_one_inside_a_world_writable_folder(tmp_path: Path, folder: Path) -> None:
    tmp_path.chmod(0o777)
    assert_loaded_for_once(f"is inside {tmp_path}")
    assert not list(folder.iterdir())
    tmp_path.chmod(0o1777)  # like /tmp, where only owners may rename
    assert library()
    assert list(folder.iterdir())


def test_nor_a_link_to_one(folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert_loaded_for_once("is a link")
    assert not list(folder.iterdir())


def test_a_file_in_the_folders_place(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")
    assert_loaded_for_once("cannot be used")
    assert folder.read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_nothing_of_another_owner_is_loaded(folder: Path, compilations: list[list[str]]) -> None:
    library()
    (file,) = folder.iterdir()
    os.chown(file, 12345, -1)
    assert library()
    assert len(compilations) == 2
    assert file.stat().st_uid == os.geteuid()
    os.chown(folder, 12345, -1)
    assert_loaded_for_once("belongs to another user")


def test_nor_a_file_that_others_may_write_to(folder: Path, compilations: list[list[str]]) -> None:
    library()
    (file,) = folder.iterdir()
    file.chmod(0o722)
    library()
    assert len(compilations) == 2
    assert file.stat().st_mode & 0o777 == 0o700


def test_a_library_that_is_swapped_after_the_check_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert library()
    (file,) = folder.iterdir()
    (tmp_path / "other.so").write_text("not a library")
    check = build._digest

    def swap(content: bytes) -> str:
        if content == file.read_bytes():
            (tmp_path / "other.so").replace(file)
        return check(content)

    with monkeypatch.context() as patch:
        patch.setattr(build, "_digest", swap)
        assert build._kept(folder, file.stem.rpartition("-")[0])
    assert file.read_text() == "not a library"


def test_several_processes_compile_once(folder: Path, compiler: Callable[[str], Path]) -> None:
    log = compiler('sleep 1\n$real "$@"')
    several = [subprocess.Popen(elsewhere()) for _ in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    assert [file.suffix for file in folder.iterdir()] == [".so"]
    assert log.read_text() == "run\n"


def test_a_killed_compilation_is_done_again_and_leaves_nothing(folder: Path, compiler: Callable[[str], Path]) -> None:
    log = compiler('[ -e "$0.again" ] || { touch "$0.again"; sleep 60; }\n$real "$@"')
    with subprocess.Popen(elsewhere()) as process:
        while not log.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert [file.suffix for file in folder.iterdir()] == [".lock"]
    assert library()
    assert [file.suffix for file in folder.iterdir()] == [".so"]
    assert log.read_text() == "run\nrun\n"


def test_no_compiler_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for chosen, note in (("", ""), ("does-not-exist", "CXX is 'does-not-exist'"), ("'", "CXX is")):
        monkeypatch.setenv("CXX", chosen)
        built = build.build_library()
        assert built.library is None
        assert built.note.startswith(note)
        assert bool(built.note) == bool(chosen), "to have no compiler is nothing to report at every start"
    assert not folder.exists()


def test_a_compiler_that_fails_leaves_nothing(folder: Path, compiler: Callable[[str], Path]) -> None:
    compiler('echo "kernels.cpp: fatal error: no" >&2\necho more >&2\nexit 1')
    built = build.build_library()
    assert built.library is None
    assert built.note.endswith("compiler failed: kernels.cpp: fatal error: no")
    assert not list(folder.iterdir())


def test_what_is_no_library_is_not_loaded(folder: Path, compiler: Callable[[str], Path]) -> None:
    compiler('for last; do :; done\necho "not a library" > "$last"')
    built = build.build_library()
    assert built.library is None
    assert "cannot be loaded" in built.note


def test_a_compiler_that_hangs_is_ended_with_all_it_started(
    compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = compiler(f"sh -c 'echo $$ > {tmp_path}/child; exec sleep 600'")
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.5)
    built = build.build_library()
    assert built.library is None
    assert "did not end" in built.note
    assert log.read_text() == "run\n", "other flags would not help"
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    assert not child.exists() or ") Z " in child.read_text(), "it runs on"


def test_a_full_disk_costs_only_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(build.Lock, "acquire_for", full)
    monkeypatch.setattr(build, "replacing", full)
    assert_loaded_for_once("No space left on device")
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    built = build.build_library()
    assert built.library is None
    assert "No space left on device" in built.note
