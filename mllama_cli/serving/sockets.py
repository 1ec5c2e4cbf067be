"""Bind the socket of a server before its model loads, and say who has it if it is taken."""

import errno
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.system.private_sockets import bind_private, has_unix_sockets


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which refuses connections until the server listens.

    Raise UsageError for a host that is not this machine's, MllamaError for a port that is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host} cannot be resolved: {getattr(error, 'strerror', None) or error}",
            "Use 127.0.0.1, or 0.0.0.0 for all.",
        ) from error
    found.sort(key=lambda each: each[0] != socket.AF_INET)  # localhost: clients try IPv4 in any case
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _not_bound(error, host, port) from error
    return bound


def bind_file(path: Path) -> socket.socket:
    """Return a socket bound to a file that only this user can use. A file that a killed server left is replaced.

    Raise UsageError for a path that cannot be used, MllamaError if a server answers there.
    """
    if not has_unix_sockets():
        raise UsageError("--uds needs Unix sockets, which this system does not have", "Use --host and --port.")
    try:
        _remove_stale(path)
        return bind_private(path)
    except OSError as error:
        raise UsageError(f"--uds {path}: {error.strerror or error}", "Name a file in an existing folder.") from error


def port_taken(port: int) -> MllamaError:
    """Return the error for a port on which something listens already."""
    by = _listener_on(port)
    return MllamaError(
        f"Port {port} is taken{f' by {by}' if by else ''}", "Stop it, or choose another port with --port."
    )


def _not_bound(error: OSError, host: str, port: int) -> MllamaError:
    if error.errno == errno.EADDRINUSE:
        return port_taken(port)
    if error.errno == errno.EACCES:
        return MllamaError(f"Port {port} may not be used by this user", "Choose one from 1024 on with --port.")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"--host {host} is not an address of this machine", "Use 127.0.0.1, or 0.0.0.0 for all.")
    return MllamaError(f"{host}:{port} cannot be used: {error.strerror or error}", "Choose another with --port.")


def _listener_on(port: int) -> str:
    """Return name and id of the process that listens on a port; empty if the system does not show it."""
    with suppress(psutil.Error, OSError, RuntimeError):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return ""


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"--uds {path} exists and is not a socket", "Name another file.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise MllamaError(f"A server answers on {path} already", "Stop it, or name another file with --uds.")
