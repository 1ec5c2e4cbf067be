"""Where the engines of this user listen: names that tell what they hold, and a lock that each holds for life.

An engine has two files in a folder of this user: ``NAME.sock`` and ``NAME.lock``. NAME stands for everything that a
client must agree with, so that what does not fit is never found; other names of the same engine are links to its
socket. A socket whose lock nobody holds was left by a process that was killed. Where there are no Unix sockets, that
file records a port of this machine and the token that the engine asks for.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mllama_cli.core.errors import EngineError
from mllama_cli.core.events import Event
from mllama_cli.core.version import __version__
from mllama_cli.remote.answerer import RemoteAnswerer, connect
from mllama_cli.remote.client import Address
from mllama_cli.remote.question import PROTOCOL
from mllama_cli.system.files import resolved
from mllama_cli.system.locks import Lock
from mllama_cli.system.loopback import listen_on_loopback
from mllama_cli.system.private_sockets import (
    bind_private,
    has_unix_sockets,
    make_private_folder,
    require_private_folder,
    runtime_folders,
)

BACKLOG = 512
"""Clients that may wait for an engine to listen."""
_SOCKET, _LOCK = ".sock", ".lock"
_DIGITS = 16
"""Of a name: fewer would make a shorter path, which some systems need, and more likely collisions."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine and its client must agree on, as it was asked for: "auto" means the same to both.

    ``state`` changes with the files of the model, ``adapters`` are folders and states in the order in which they are
    merged, ``visible`` are the GPUs that "auto" and "cuda" choose from, ``image_kv`` is the format of the keys and
    values of images, ``fast`` whether they are encoded in float8 where that is faster.
    """

    path: str
    state: str
    device: str
    dtype: str
    quantize: str
    exact: bool
    visible: str
    adapters: tuple[tuple[str, str], ...] = ()
    image_kv: str = ""
    fast: bool = False
    version: str = __version__
    protocol: int = PROTOCOL

    @classmethod
    def of(
        cls,
        folder: Path,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        exact: bool = False,
        adapters: Sequence[Path] = (),
        image_kv: str | None = None,
        fast: bool = False,
    ) -> "EngineKey":
        """Return the key of a model's folder and its adapters'. Raise OSError if one of them cannot be read."""
        path = resolved(folder)
        merged = tuple((str(each), _state(each)) for each in map(resolved, adapters))
        rest = (quantize or "", exact, _visible(device), merged, image_kv or "", fast)
        return cls(str(path), _state(path), device, dtype, *rest)

    def for_device(self, device: str, dtype: str) -> "EngineKey":
        """Return the key of the same model on another device."""
        return replace(self, device=device, dtype=dtype, visible=_visible(device))

    @property
    def name(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _visible(device: str) -> str:
    return "" if device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "")


def _state(folder: Path) -> str:
    """Return a digest of the names, sizes and times of a model's files."""
    found = []
    with os.scandir(folder) as inside:
        for entry in inside:
            with suppress(OSError):  # a broken link
                status = entry.stat()
                found.append(f"{entry.name}/{status.st_size}/{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()


def find(
    key: EngineKey, *, keep_alive: float | None = None, progress: Callable[[Event], None] | None = None
) -> RemoteAnswerer | None:
    """Return the running engine with a key, after waiting until it has loaded; None if there is none.

    Raise EngineError if it does not answer, or what kept it from loading.
    """
    for folder in existing_folders():
        try:
            address = Address.of_file(socket_file(folder, key.name))
            return connect(address, keep_alive=keep_alive, progress=progress)
        except EngineError as error:
            if not error.is_absent:
                raise
    return None


def running() -> list[Address]:
    """Return the sockets of this user's engines, and remove those that killed ones have left."""
    found: list[Address] = []
    for folder in existing_folders():
        for file in sorted(folder.glob(f"*{_SOCKET}")):
            lock = None
            with suppress(OSError):
                lock = Lock.acquire(str(file.with_suffix(_LOCK)))
            if lock is not None:
                remove_socket(file)
                lock.release()
            elif not file.is_symlink():
                with suppress(EngineError):  # it starts, and has not written its record
                    found.append(Address.of_file(file))
    return found


def existing_folders() -> Iterator[Path]:
    """Yield the folders of sockets that exist and are safe to use."""
    for folder in _folders():
        with suppress(OSError):
            require_private_folder(folder)
            yield folder


def usable_folder() -> Path:
    """Return the best folder for new sockets, which is created. Raise EngineError if there is none."""
    reasons = []
    for folder in _folders():
        try:
            make_private_folder(folder)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
            reasons.append(f"{folder} cannot be written")
        except OSError as error:
            reasons.append(f"{error.strerror}" if error.filename is None else f"{error.filename}: {error.strerror}")
    raise EngineError(
        f"There is no folder for an engine's socket: {'; '.join(reasons)}",
        "Set XDG_RUNTIME_DIR to a folder that belongs to you alone.",
    )


def _folders() -> list[Path]:
    return runtime_folders("mllama", _DIGITS + len(_SOCKET))


def socket_file(folder: Path, name: str) -> Path:
    return folder / f"{name}{_SOCKET}"


def lock_file(folder: Path, name: str) -> Path:
    return folder / f"{name}{_LOCK}"


def remove_socket(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


class Registration:
    """The names of one engine, which holds their locks until ``close``.

    ``bound`` is the socket, which listens when the engine's server does. ``token`` is what clients send to a port.
    """

    def __init__(self, folder: Path, name: str, lock: Lock, bound: socket.socket, token: str | None = None) -> None:
        self.folder, self.bound, self.token = folder, bound, token
        self._held = [(socket_file(folder, name), lock)]

    @classmethod
    def create(cls, keys: Sequence[EngineKey]) -> "Registration | None":
        """Return a registration under those keys that no other engine has; None if there is none.

        Raise EngineError if there is no safe folder, OSError.
        """
        folder = usable_folder()
        for index, key in enumerate(keys):
            lock = Lock.acquire(str(lock_file(folder, key.name)))
            if lock is not None:
                registration = cls.bind(folder, key.name, lock, port=not has_unix_sockets())
                registration.add(keys[index + 1 :])
                return registration
        return None

    @classmethod
    def bind(cls, folder: Path, name: str, lock: Lock, *, port: bool) -> "Registration":
        """Return a registration under a name whose lock this process holds; it is released after an OSError.

        It is on a ``port`` of this machine, or on a Unix socket.
        """
        file = socket_file(folder, name)
        remove_socket(file)
        try:
            if port:
                return cls(folder, name, lock, *listen_on_loopback(file, BACKLOG))
            return cls(folder, name, lock, bind_private(file))
        except OSError:
            lock.release()
            raise

    @property
    def file(self) -> Path:
        return self._held[0][0]

    @property
    def server(self) -> tuple[str, int | None]:
        """Return where it is, as a request's scope names it."""
        if self.token is None:
            return str(self.file), None
        host, port = self.bound.getsockname()
        return host, port

    def add(self, keys: Sequence[EngineKey]) -> None:
        """Take more names that no other engine has."""
        for name in dict.fromkeys(key.name for key in keys):
            with suppress(OSError):
                lock = Lock.acquire(str(lock_file(self.folder, name)))
                if lock is None:
                    continue
                file = socket_file(self.folder, name)
                try:
                    remove_socket(file)
                    file.symlink_to(self.file.name)
                except OSError:  # Windows asks for a privilege: clients must not wait for a name that leads nowhere
                    lock.release()
                    raise
                self._held.append((file, lock))

    def close(self) -> None:
        """Give up all names. The socket is removed before its lock, so that no client takes it for a live one."""
        self.bound.close()
        for file, lock in reversed(self._held):
            remove_socket(file)
            lock.release()
        self._held.clear()
