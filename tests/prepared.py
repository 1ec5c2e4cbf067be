"""Start our own programs as forks of a process that has imported torch already, instead of importing it in each.

The import takes two seconds of CPU time, and the tests start some hundred processes, which start others. Within
``prepared_processes``, `subprocess` forks those that run this package (the `mllama` script, or ``python -m``). They are
children with a process id, arguments, an environment, descriptors, a session, signals and an exit code of their own,
like any others, and have computed nothing. In a new session, a terminal at stdin becomes theirs. A program given as
text (``python -c``) or started by a shell is not forked.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import unittest.mock
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair  # which tests hide
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("mllama")
IMPORTED = (
    "torch",
    "mllama_cli.captioning.shards.run",
    "mllama_cli.chat.repl",
    "mllama_cli.cli.caption_run",
    "mllama_cli.engine.parallel.team",
    "mllama_cli.quantization.quantize",
    "mllama_cli.serving.app",
)
"""What programs have in common, without the hub's client, which reads the environment when it is imported."""

OF_PYTHON = ("PYTHON", "LANG", "LC_", "LD_")
"""Beginnings of variables that are read when Python starts."""

MAX_REQUEST_BYTES = 100_000
TITLE_BYTES = 1000
HIGH = 500
"""Descriptors from here on are out of the way of those that a program gets."""

SET_CHILD_SUBREAPER = 36
"""An operation of Linux's prctl."""

EXECUTE_CHILD = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Request:
    """A program to run; ``descriptors`` are the numbers that those sent with it get."""

    command: Sequence[str]
    folder: str
    env: Mapping[str, str]
    new_session: bool
    descriptors: Sequence[int]


class Launcher:
    """A process that forks for each request, started for the first one unless it runs. It ends when this one does."""

    def __init__(self, line: socket.socket | None = None) -> None:
        self._line = line
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def fork(self, request: bytes, descriptors: Sequence[int]) -> int:
        """Start a program as a child of this process; return its id."""
        with self._lock:
            self._line = self._line or self._start()
            _adopt_orphans(True)  # whose parent, which the launcher has forked, ends
            try:
                socket.send_fds(self._line, [request], list(descriptors))
                return int(self._line.recv(100))
            finally:
                _adopt_orphans(False)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            self._process.wait()

    def _start(self) -> socket.socket:
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        code = f"from tests.prepared import main; main({theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, " " * TITLE_BYTES],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # no threads that a fork would lose
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return ours


class PreparedPopen(subprocess.Popen[Any]):
    """A process that is forked if it runs our own program."""

    launcher: Launcher

    def _execute_child(self, *settings: Any) -> None:
        asked = EXECUTE_CHILD.bind(self, *settings).arguments
        env = os.environ if asked["env"] is None else asked["env"]
        variables = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
        command, folder, passed = _command(asked), str(Path(asked["cwd"] or "").absolute()), list(asked["pass_fds"])
        request = Request(command, folder, variables, bool(asked["start_new_session"]), [0, 1, 2, *passed])
        data = json.dumps(asdict(request)).encode()
        if len(data) > MAX_REQUEST_BYTES or not _is_ours(command) or not _is_usual(variables):
            super()._execute_child(*settings)  # type: ignore[misc]
            return
        ends = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        standard = [number if end < 0 else end for number, end in enumerate(ends)]
        self.pid = self.launcher.fork(data, [*standard, *passed])
        self._child_created = True
        pairs = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pairs))  # type: ignore[attr-defined]


@contextmanager
def prepared_processes(launcher: Launcher) -> Iterator[None]:
    """Let `subprocess` fork our own programs meanwhile, on Linux."""
    PreparedPopen.launcher = launcher
    popen = PreparedPopen if sys.platform == "linux" else subprocess.Popen
    with unittest.mock.patch.object(subprocess, "Popen", popen):
        yield
    launcher.close()


def main(descriptor: int) -> None:
    """Import what programs have in common, fork for each request, and run it in the child."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request, launcher = serve(socket.socket(fileno=descriptor))
    with prepared_processes(launcher):
        run(request)


def serve(line: socket.socket) -> tuple[Request, Launcher]:
    """Fork for each request; in the child, return it and a launcher for the programs that it starts itself."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(line, MAX_REQUEST_BYTES, HIGH)
        if not data:
            os._exit(0)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            if os.fork():
                os._exit(0)
            break
        for descriptor in (writing, *descriptors):
            os.close(descriptor)
        os.waitpid(child, 0)
        line.send(os.read(reading, 100))
        os.close(reading)
    line.close()
    os.close(reading)
    request = Request(**json.loads(data))
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    if not os.fork():
        ours.close()
        for descriptor in (writing, *descriptors):
            os.close(descriptor)
        os.setsid()
        return serve(theirs)
    theirs.close()
    if request.new_session:
        os.setsid()
    os.write(writing, str(os.getpid()).encode())
    os.close(writing)
    own, *given = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, HIGH) for each in (ours, *descriptors)]
    ours.close()
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(given, request.descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request.new_session and os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C typed there, and its end, reach this process
    return request, Launcher(socket.socket(fileno=own))


def run(request: Request) -> None:
    """Make this process what the request asks for, and run its program."""
    command = list(request.command)
    _set_title(command)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.env)
    tempfile.tempdir = None
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        before = getattr(sys, name)
        stream = os.fdopen(number, mode, encoding=before.encoding, errors=before.errors, closefd=False)
        stream.reconfigure(line_buffering=number == 2 or stream.isatty())
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    # Handlers that were registered with an import run at the end of a command only if registered after its own.
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    if "multiprocessing.util" in sys.modules:
        atexit.register(sys.modules["multiprocessing.util"]._exit_function)
    if module := _module(command):
        sys.argv = command[command.index(module) :]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def _command(asked: Mapping[str, Any]) -> list[str]:
    """Return the words of a process to be started as usual; none for one that a shell or a function prepares."""
    args = asked["args"]
    if asked["shell"] or asked["preexec_fn"] or asked["executable"] or isinstance(args, str | bytes | os.PathLike):
        return []
    return [os.fsdecode(word) for word in args]


def _is_ours(command: list[str]) -> bool:
    is_script = command[:1] == [str(SCRIPT)]
    return is_script or _module(command).partition(".")[0] in ("mllama_cli", "tests")


def _module(command: list[str]) -> str:
    """Return the module that Python is told to run, or nothing."""
    program, *words = command or [""]
    words = words[words[:1] == ["-P"] :]
    return words[1] if program == sys.executable and words[:1] == ["-m"] else ""


def _is_usual(variables: Mapping[str, str]) -> bool:
    """Return whether an environment asks nothing of Python that this process's does not."""
    names = {name for name in (*variables, *os.environ) if name.startswith(OF_PYTHON)} - {"PYTHONPATH"}
    folders = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    same = all(variables.get(name) == os.environ.get(name) for name in names) and {*folders} <= {*sys.path}
    return same and variables.get("OMP_NUM_THREADS", "1") == "1"


def _adopt_orphans(whether: bool) -> None:
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, int(whether), 0, 0, 0)


def _set_title(command: Sequence[str]) -> None:
    """Show other processes these words as those that this one was started with."""
    numbers = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(numbers[index]) for index in (45, 46))
    title = b"\0".join(map(os.fsencode, command))[: end - start]
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(title.ljust(end - start, b"\0"))
