"""Compile kernels.cpp on first use and keep the library in the user's cache folder.

Code is loaded from that folder, so nothing that another user could have written is trusted: folder and file must be
ours and writable by nobody else, and the file is loaded through the descriptor by which it was checked. The file name
has a digest of the inputs and one of the content, so another compiler, processor or version gets its own file, and a
damaged file is compiled again.
"""

import ctypes
import hashlib
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.text import one_line
from mllama_cli.kernels.cpu.compiler import CompilerError, CompilerHangsError, find_compiler, run_compiler
from mllama_cli.system.locks import Lock, remove_abandoned_locks
from mllama_cli.system.paths import cache_folder
from mllama_cli.system.safe_files import is_own, replacing

SOURCE = Path(__file__).with_name("kernels.cpp")
INTERFACE = 1
"""The value that the library's ``mllama_version`` must return."""

COMPILE_SECONDS = 120.0
VERSION_SECONDS = 10.0

_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC", "-pthread")


@dataclass(frozen=True)
class Build:
    """The library, or None where it cannot be had; and in one line what the user should know about it, if anything."""

    library: ctypes.CDLL | None
    note: str = ""


def build_library(vectors: bool = True) -> Build:
    """Load the library; compile it if necessary, once for all processes.

    ``vectors=False`` builds the portable form, for tests.
    """
    compiler = find_compiler()
    if compiler is None:
        chosen = os.environ.get("CXX")
        return Build(None, f"CXX is {one_line(chosen, 100)!r}, and there is no such compiler" if chosen else "")
    try:
        version = run_compiler([*compiler, "--version"], VERSION_SECONDS)
    except CompilerError as error:
        return Build(None, str(error))
    note = ""
    for machine in _machine_flags() if vectors else (["-DMLLAMA_PORTABLE"],):
        try:
            return _built([*compiler, *_FLAGS, *machine], version)
        except CompilerHangsError as error:
            return Build(None, str(error))
        except CompilerError as error:
            note = str(error)
    return Build(None, note)


def _built(command: list[str], version: bytes) -> Build:
    """Load the library that a command makes, from the cache folder if it can be used. Raise CompilerError."""
    folder = cache_folder() / "kernels"
    parts = (SOURCE.read_bytes(), version, repr(command).encode(), _cpu().encode())
    key = _digest(b"\0".join(parts))
    if unusable := _make(folder):
        return _loaded_once(_compiled(command), f"{folder} {unusable}")
    if library := _kept(folder, key):
        return Build(library)
    with _locked(folder / key) as lock:
        if library := _kept(folder, key):  # another process has compiled it meanwhile
            return Build(library)
        content = _compiled(command)
        file = folder / f"{key}-{_digest(content)}.so"
        try:
            with (lock.replacing if lock else replacing)(str(file), mode=0o700) as out:
                out.write(content)
        except OSError as error:
            return _loaded_once(content, f"{folder} cannot be written ({error.strerror})")
    return Build(_required(file, content))


def _compiled(command: list[str]) -> bytes:
    """Return the library that a command makes. Raise CompilerError."""
    try:
        with tempfile.TemporaryDirectory(prefix="mllama-") as folder:
            out = Path(folder) / "kernels.so"
            run_compiler([*command, str(SOURCE), "-o", str(out)], COMPILE_SECONDS)
            return out.read_bytes()
    except OSError as error:
        raise CompilerError(f"the temporary folder cannot be used: {error.strerror}") from error


def _loaded_once(content: bytes, why: str) -> Build:
    """Load a library for this run only. Raise CompilerError."""
    try:
        with tempfile.TemporaryDirectory(prefix="mllama-") as folder:
            file = Path(folder) / "kernels.so"
            file.write_bytes(content)
            file.chmod(0o700)
            return Build(_required(file, content), f"they are compiled at every start, as {why}")
    except OSError as error:
        raise CompilerError(f"the temporary folder cannot be used: {error.strerror}") from error


@contextmanager
def _locked(target: Path) -> Iterator[Lock | None]:
    """Wait for the process that compiles the same, and keep others waiting.

    Give None where locks do not work, or if that process takes longer than the compiler may.
    """
    deadline = time.monotonic() + COMPILE_SECONDS
    lock = None
    try:
        remove_abandoned_locks(str(target.parent))
        while (lock := Lock.acquire_for(str(target))) is None and time.monotonic() < deadline:
            time.sleep(0.05)
    except OSError:
        pass
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def _kept(folder: Path, key: str) -> ctypes.CDLL | None:
    """Load the library with that key from the folder, if it is there and intact."""
    for file in sorted(folder.glob(f"{key}-*.so")):
        if library := _load(file, file.stem.removeprefix(f"{key}-")):
            return library
    return None


def _required(file: Path, content: bytes) -> ctypes.CDLL:
    """Load a library that was just written. Raise CompilerError."""
    library = _load(file, _digest(content))
    if library is None:
        raise CompilerError(f"{file} cannot be loaded")
    return library


def _load(file: Path, digest: str) -> ctypes.CDLL | None:
    """Load a library that is ours alone and has that digest."""
    kept = False
    try:
        opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or not is_own(status) or status.st_mode & 0o022:
            return None
        with open(opened, "rb", closefd=False) as stream:
            if _digest(stream.read()) != digest:
                return None
        # Not by its name, which may have become another file's since.
        path = Path(f"/proc/self/fd/{opened}")
        kept = path.exists()
        library = ctypes.CDLL(str(path if kept else file))
        return library if library.mllama_version() == INTERFACE else None
    except (OSError, AttributeError):
        return None
    finally:
        if not kept:  # the loader takes a second library with the same number for the first
            os.close(opened)


def _machine_flags() -> Sequence[list[str]]:
    """Return sets of flags for this processor, the best first: an old compiler may not know it."""
    features = set(_cpu().split())
    if platform.machine() in ("arm64", "aarch64"):
        return ["-mcpu=native"], ["-march=armv8.2-a+dotprod"] if "asimddp" in features else [], []
    return ["-march=native"], ["-mavx2", "-mfma", "-mf16c"] if {"avx2", "fma", "f16c"} <= features else [], []


def _cpu() -> str:
    """Identify the processor: code for one may not run on another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        return " ".join(
            line.partition(":")[2] for line in lines if line.startswith(("flags", "Features", "model name"))
        )
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"


def _make(folder: Path) -> str:
    """Make the folder for us alone. Return why it cannot be used, such as others who could write to it; else ""."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = folder.lstat()
        if stat.S_ISLNK(own.st_mode):
            return "is a link"
        if not is_own(own):
            return "belongs to another user"
        if own.st_mode & 0o022:
            return "can be written by others"
        for above in folder.resolve().parents:
            info = above.stat()
            if info.st_uid not in (os.geteuid(), 0) or (info.st_mode & 0o002 and not info.st_mode & stat.S_ISVTX):
                return f"is inside {above}, which others can change"
        return "" if os.access(folder, os.W_OK) else "cannot be written"
    except OSError as error:
        return f"cannot be used ({error.strerror})"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
