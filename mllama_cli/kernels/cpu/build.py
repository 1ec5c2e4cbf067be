"""Compile kernels.cpp on first use and keep the library in the user's cache folder.

Code is loaded from that folder, so nothing that another user could have written is trusted: folders and file must be
ours (parent folders may be root's) and writable by nobody else. The file name has a digest of the inputs and one of the
content, so another compiler, processor or version gets its own file, and a damaged file is compiled again.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mllama_cli.system.paths import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")
INTERFACE = 1
"""The value that the library's ``mllama_version`` must return."""

_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC", "-pthread")
_TIMEOUT = 120


def library(vectors: bool = True) -> ctypes.CDLL | None:
    """Load the library, compiling it if necessary; return None where that is impossible.

    ``vectors=False`` builds the portable form, for tests.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    for machine in _machine_flags() if vectors else (["-DMLLAMA_PORTABLE"],):
        key = _key(compiler, machine)
        if key is None:
            return None
        folder = cache_folder() / "kernels"
        if _make(folder):
            for file in sorted(folder.glob(f"{key}-*.so")):
                if _intact(file) and (loaded := _load(file)):
                    return loaded
            built = _compile(compiler, machine, folder, key)
            if built and (loaded := _load(built)):
                return loaded
        else:  # no folder that is safe to use: a private one, for this run only
            with tempfile.TemporaryDirectory(prefix="mllama-") as private:
                built = _compile(compiler, machine, Path(private), key)
                if built and (loaded := _load(built)):
                    return loaded
    return None


def find_compiler() -> list[str] | None:
    """Return the command of a C++ compiler: $CXX, else the first one on the path."""
    if os.name != "posix":
        return None
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in (chosen, ["c++"], ["g++"], ["clang++"]):
        if command and (path := shutil.which(command[0])):
            return [path, *command[1:]]
    return None


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


def _key(compiler: list[str], machine: list[str]) -> str | None:
    try:
        version = subprocess.run(
            [*compiler, "--version"], capture_output=True, timeout=_TIMEOUT, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    parts = (SOURCE.read_bytes(), version.stdout, repr((compiler, machine, _FLAGS)).encode(), _cpu().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _make(folder: Path) -> bool:
    """Make the folder for us alone; return False where others could write to it, or on failure."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = folder.stat()
        if folder.is_symlink() or own.st_uid != os.geteuid() or own.st_mode & 0o022:
            return False
        for above in folder.resolve().parents:
            info = above.stat()
            if info.st_uid not in (os.geteuid(), 0) or (info.st_mode & 0o002 and not info.st_mode & stat.S_ISVTX):
                return False
        return os.access(folder, os.W_OK)
    except OSError:
        return False


def _intact(file: Path) -> bool:
    """Return whether a library is ours alone and undamaged."""
    try:
        info = file.lstat()
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            return False
        return file.stem.endswith(f"-{_digest(file)}")
    except OSError:
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:24]


def _compile(compiler: list[str], machine: list[str], folder: Path, key: str) -> Path | None:
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        subprocess.run(
            [*compiler, *_FLAGS, *machine, str(SOURCE), "-o", name],
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        temporary.chmod(0o700)
        return temporary.replace(folder / f"{key}-{_digest(temporary)}.so")
    except (OSError, subprocess.SubprocessError):
        return None
    finally:
        temporary.unlink(missing_ok=True)


def _load(file: Path) -> ctypes.CDLL | None:
    try:
        loaded = ctypes.CDLL(str(file))
        return loaded if loaded.mllama_version() == INTERFACE else None
    except (OSError, AttributeError):
        return None
