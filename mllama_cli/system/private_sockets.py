"""Unix sockets that only this user can use, in a folder that only this user can use."""

import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path

from mllama_cli.system.safe_files import UnsafeFileError, is_own

MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes of a socket's path: those of sockaddr_un without the NUL at its end."""

_SYSTEM: str = sys.platform
_LOCAL_PEERCRED = 1
"""macOS' option with the credentials of a socket's other end, as a struct xucred."""


def has_unix_sockets() -> bool:
    """Return whether this system has them."""
    return hasattr(socket, "AF_UNIX")


def runtime_folders(program: str, longest_name: int) -> list[Path]:
    """Return the folders where sockets may be, best first, whether they exist or not.

    They are in $XDG_RUNTIME_DIR and in the folder of temporary files, where a name of ``longest_name`` bytes fits.
    Without Unix sockets any length fits.
    """
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    runtime, temporary = (os.environ.get(name, "") for name in ("XDG_RUNTIME_DIR", "TMPDIR"))
    if sys.platform == "win32":
        temporary = os.environ.get("TEMP", "")
    limit = MAX_SOCKET_PATH if has_unix_sockets() else sys.maxsize
    found = [Path(runtime) / program, Path(temporary) / f"{program}-{user}", Path("/tmp") / f"{program}-{user}"]
    fitting = [each for each in found if each.is_absolute() and len(os.fsencode(each)) + 1 + longest_name <= limit]
    in_runtime = [each for each in fitting if each is found[0]]
    return in_runtime + [each for each in fitting if each is not found[0]][:1]


def require_private_folder(folder: Path) -> None:
    """Raise UnsafeFileError for anything but a folder of this user that others cannot enter, FileNotFoundError."""
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeFileError(str(folder), "is not a folder")
    if not is_own(status):
        raise UnsafeFileError(str(folder), f"belongs to another user (id {status.st_uid})")
    if sys.platform != "win32" and status.st_mode & 0o077:
        raise UnsafeFileError(str(folder), f"may be entered by others (mode {stat.S_IMODE(status.st_mode):o})")


def make_private_folder(folder: Path) -> None:
    """Create a folder for this user alone unless it is there already. Raise OSError if it is not, or not private."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    require_private_folder(folder)


def bind_private(path: Path) -> socket.socket:
    """Return a socket bound to a new file, which has mode 0600 from its first moment. Raise OSError."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def peer_user(connected: socket.socket) -> int | None:
    """Return the id of the user at the other end of a Unix socket; None where the system does not say."""
    linux_option = getattr(socket, "SO_PEERCRED", None)
    if linux_option is not None:  # struct ucred: process, user, group
        return int(struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, linux_option, 12))[1])
    if _SYSTEM == "darwin":  # struct xucred: version, user, ...
        return int(struct.unpack("2I", connected.getsockopt(0, _LOCAL_PEERCRED, 8))[1])
    return None


def peer_process(connected: socket.socket) -> int | None:
    """Return the id of the process that listens at the other end of a Unix socket; None if the system does not say."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    return int(struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, 12))[0])


def is_own_peer(connected: socket.socket) -> bool:
    """Return whether this user is at the other end of a Unix socket, as far as the system says."""
    user = peer_user(connected)
    return user is None or user == os.geteuid()
