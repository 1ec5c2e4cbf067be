"""The processes of ranks 1 and up, as rank 0 sees them: started, told what to do, watched, and ended with it."""

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mllama_cli.core.errors import DeviceError, EngineError
from mllama_cli.core.text import shown
from mllama_cli.system.private_sockets import bind_private

MODULE = "mllama_cli.engine.rank"
JOIN_SECONDS = 120.0
"""How long ranks that something else has started may take until they join."""

END_SECONDS = 3.0
"""How long the processes may take to end before they are killed."""


@dataclass(frozen=True)
class Member:
    """A rank, the connection to it and, if this process started it, its process and a file of what it prints."""

    rank: int
    connection: Connection
    process: "subprocess.Popen[bytes] | None" = None
    output: int | None = None
    joined: threading.Event = field(default_factory=threading.Event)
    """Set when it has said anything."""


class Crew:
    """All ranks but 0. ``replies`` has what they answer, as (rank, reply); None once one is lost."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.replies: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self.lost = threading.Event()
        self.reason = ""
        self.on_lost: Callable[[EngineError], None] | None = None
        """Called once, on another thread, when a rank has ended although it should not."""
        self.stop: Callable[[], None] = lambda: None
        """Ends operations that wait for other ranks."""
        self.release: Callable[[], None] = lambda: None
        """Lets go of what is shared with the other ranks, once they have ended."""
        self.told = False
        """Whether the main thread has had the error, which a command prints."""
        self._closing = False
        self._lock = threading.Lock()

    def start(self, devices: Sequence[str]) -> None:
        """Start the processes of ranks 1 and up, one for each device. Raise DeviceError where this system cannot."""
        if os.name != "posix":
            raise DeviceError("Several devices need a Unix system, such as Linux or WSL", "Name one device.")
        for rank, device in enumerate(devices, 1):
            ours, theirs = socket.socketpair()
            output, name = tempfile.mkstemp(prefix="mllama-rank-")
            Path(name).unlink()
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), device],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # so that Ctrl-C in a terminal reaches rank 0 alone
                    pass_fds=(theirs.fileno(),),
                )
            self.add(Member(rank, Connection(ours.detach()), process, output))

    def accept(self, count: int, file: Path) -> None:
        """Wait for ranks 1 to ``count`` - 1, which something else has started, at a socket. Raise EngineError."""
        missing = set(range(1, count))
        try:
            file.unlink(missing_ok=True)
            with bind_private(file) as bound:
                bound.listen(count)
                bound.settimeout(JOIN_SECONDS)
                while missing:
                    line, _ = bound.accept()
                    connection = Connection(line.detach())
                    rank = connection.recv()
                    missing.remove(rank)
                    self.add(Member(rank, connection))
            file.unlink(missing_ok=True)
        except (OSError, EOFError, KeyError) as error:
            raise EngineError(f"The processes of the model do not meet at {file}: {error}") from error

    def add(self, member: Member) -> None:
        self.members.append(member)
        threading.Thread(target=self._listen, args=(member,), name=f"rank {member.rank}", daemon=True).start()

    def send(self, data: bytes) -> None:
        """Send a message to all. Raise EngineError if one is lost."""
        if self.lost.is_set():
            raise self.error()
        try:
            for member in self.members:
                member.connection.send_bytes(data)
        except OSError as error:
            self.lost.wait(END_SECONDS)
            raise self.error() from error

    def tell(self, member: Member, message: object) -> None:
        """Send an object to one rank. Raise EngineError if it is lost."""
        try:
            member.connection.send(message)
        except OSError as error:
            self.lost.wait(END_SECONDS)
            raise self.error() from error

    def explained(self, error: RuntimeError) -> Exception:
        """Return the error for users if a rank is lost, else the one that was caught."""
        return self.error() if self.lost.wait(END_SECONDS) else error

    def error(self) -> EngineError:
        """Return what to tell the user about the rank that is lost."""
        if threading.current_thread() is threading.main_thread():
            self.told = True
        return EngineError(
            self.reason or "A process that computes a part of the model has ended",
            "Load the model again. A process that was killed may have been so for lack of memory.",
        )

    def abandon(self, reason: str) -> None:
        """End all ranks, since they cannot go on together."""
        self._lose(reason)

    def close(self) -> None:
        """End all processes and wait until they have; those that are still importing torch are killed."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._hang_up()
        self.stop()
        for member in self.members:
            if member.process is not None:
                if not member.joined.is_set():
                    member.process.kill()
                try:
                    member.process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    member.process.kill()
                    member.process.wait()
        self.release()
        for member in self.members:
            if member.output is not None:
                os.close(member.output)

    def _listen(self, member: Member) -> None:
        while True:
            try:
                reply = member.connection.recv()
            except (EOFError, OSError):
                break
            member.joined.set()
            self.replies.put((member.rank, reply))
        if not self._closing and not self.lost.is_set():
            self._lose(_how_it_ended(member))

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self.lost.is_set() or self._closing:
                return
            self.reason = reason
            self.lost.set()
        self._hang_up()
        self.stop()
        self.replies.put(None)
        if self.on_lost is not None:
            threading.Thread(target=lambda lost: lost(self.error()), args=(self.on_lost,), daemon=True).start()

    def _hang_up(self) -> None:
        """Shut the connections down, which ends their processes; closing them could meet a thread that reads."""
        for member in self.members:
            with suppress(OSError), socket.socket(fileno=os.dup(member.connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)


def begin(device: str) -> Crew | None:
    """Start the processes of all but the first device in a list, which import torch while this one does.

    Return None if there are no others, if only torch knows how many, or where this system cannot.
    """
    _, *others = device.split(",")
    if not others or os.name != "posix":
        return None
    crew = Crew()
    crew.start(others)
    return crew


def _how_it_ended(member: Member) -> str:
    what = f"The process of rank {member.rank}, which computes a part of the model, ended"
    if member.process is None:
        return what
    try:
        code = member.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return what
    if code < 0:
        with suppress(ValueError):
            return f"{what}: killed by {signal.Signals(-code).name}"
    lines = []
    if member.output is not None:
        size = os.fstat(member.output).st_size
        lines = os.pread(member.output, size, 0).decode(errors="replace").strip().splitlines()
    said = f": {shown(lines[-1])[1:-1]}" if lines else ""
    return f"{what} (exit code {code}){said}"
