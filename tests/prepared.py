"""Start our own programs as forks of a process that has their imports already.

The import of torch takes two seconds of CPU time, and the tests start some hundred processes, which start others.
Within ``prepared_processes``, `subprocess` forks those that run this package (the `mllama` script, ``python -m``, the
workers for strangers' files). They are children with a process id, arguments, an environment, descriptors, a session,
signals and an exit code of their own, like any others, and have computed nothing; but limits and the umask are not
inherited. In a new session, a terminal at stdin becomes theirs. A program given as text (``python -c``) or started by a
shell is not forked.
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
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair  # which tests hide
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("mllama")
PROGRAM = ""
IMPORTED = {
    PROGRAM: (
        "torch",
        "mllama_cli.captioning.shards.run",
        "mllama_cli.chat.repl",
        "mllama_cli.cli.caption_run",
        "mllama_cli.engine.parallel.team",
        "mllama_cli.quantization.quantize",
        "mllama_cli.serving.app",
    ),
    **{
        str(ROOT / "mllama_cli" / "processing" / f"{name}.py"): (f"mllama_cli.processing.{name}",)
        for name in ("decoding_worker", "template_worker")
    },
}
"""What all programs import, but for the hub's client, which reads the environment then; and what some scripts do."""

OF_PYTHON = ("PYTHON", "LANG", "LC_", "LD_")
"""Beginnings of variables that are read when Python starts."""

MAX_REQUEST_BYTES = 100_000
TITLE_BYTES = 1000
HIGH = 500
"""Descriptors from here on are out of the way of those that a program gets."""

SET_CHILD_SUBREAPER = 36
"""An operation of Linux's prctl."""

_adopting = threading.Lock()
"""Held while orphans become children of this process."""

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
    """A process that forks for each request, started for the first one unless it runs. It ends when this one does.

    ``kind`` is the key of what it imports.
    """

    def __init__(self, kind: str, line: socket.socket | None = None) -> None:
        self.kind, self._line = kind, line
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, request: Request, descriptors: Sequence[int]) -> int:
        """Start a program as a child of this process; return its id, 0 if that cannot be done."""
        data = json.dumps(asdict(request)).encode()
        if len(data) > MAX_REQUEST_BYTES or os.getpid() != self._owner:
            return 0
        with _adopting:
            self._line = self._line or self._start(request.env)
            _adopt_orphans(True)  # whose parent, which the launcher has forked, ends
            try:
                socket.send_fds(self._line, [data], list(descriptors))
                answer = self._line.recv(100)
            except OSError:
                answer = b""
            finally:
                _adopt_orphans(False)
            if not answer:  # a test has killed it
                self.close()
            return int(answer or 0)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            self._process.wait()
        self._line = self._process = None

    def _start(self, env: Mapping[str, str]) -> socket.socket:
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        code = f"from tests.prepared import main; main({self.kind!r}, {theirs.fileno()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, " " * TITLE_BYTES],
                cwd=ROOT,
                env={**env, "OMP_NUM_THREADS": "1"},  # no threads that a fork would lose
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return ours


class PreparedPopen(subprocess.Popen[Any]):
    """A process that is forked if it runs our own program."""

    launchers: Mapping[str, Launcher]

    def _execute_child(self, *settings: Any) -> None:
        asked = EXECUTE_CHILD.bind(self, *settings).arguments
        env = os.environ if asked["env"] is None else asked["env"]
        variables = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
        command, folder, passed = _command(asked), str(Path(asked["cwd"] or "").absolute()), list(asked["pass_fds"])
        request = Request(command, folder, variables, bool(asked["start_new_session"]), [0, 1, 2, *passed])
        kind = _kind(command) if command else None
        launcher = self.launchers.get(kind) if kind is not None and _is_usual(variables) else None
        ends = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        standard = [number if end < 0 else end for number, end in enumerate(ends)]
        self.pid = launcher.fork(request, [*standard, *passed]) if launcher is not None else 0
        if not self.pid:
            super()._execute_child(*settings)  # type: ignore[misc]
            return
        self._child_created = True
        pairs = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pairs))  # type: ignore[attr-defined]


@contextmanager
def prepared_processes(*launchers: Launcher) -> Iterator[None]:
    """Let `subprocess` fork our own programs meanwhile, on Linux."""
    before = subprocess.Popen
    PreparedPopen.launchers = {launcher.kind: launcher for launcher in launchers}
    if sys.platform == "linux":
        subprocess.Popen = PreparedPopen  # type: ignore[misc]
    yield
    subprocess.Popen = before  # type: ignore[misc]
    for launcher in launchers:
        launcher.close()


def main(kind: str, descriptor: int) -> None:
    """Import what programs of a kind have in common, fork for each request, and run it in the child."""
    for name in IMPORTED[kind]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request, line = serve(socket.socket(fileno=descriptor), starts_others=kind == PROGRAM)
    if line is None:
        run(request)
    else:
        with prepared_processes(Launcher(PROGRAM, line)):
            run(request)


def serve(line: socket.socket, *, starts_others: bool) -> tuple[Request, socket.socket | None]:
    """Fork for each request; in the child, return it and a line to a launcher for programs that it starts itself."""
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
    own_line = None
    if starts_others:
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        if not os.fork():
            ours.close()
            for descriptor in (writing, *descriptors):
                os.close(descriptor)
            os.setsid()
            return serve(theirs, starts_others=True)
        theirs.close()
        own_line = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, HIGH))
        ours.close()
    if request.new_session:
        os.setsid()
    os.write(writing, str(os.getpid()).encode())
    os.close(writing)
    given = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, HIGH) for each in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(given, request.descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request.new_session and os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C typed there, and its end, reach this process
    return request, own_line


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
        sys.argv = command[command[0] == sys.executable :]
        sys.argv = sys.argv[sys.argv[0] == "-P" :]
        runpy.run_path(sys.argv[0], run_name="__main__")


def _command(asked: Mapping[str, Any]) -> list[str]:
    """Return the words of a process to be started as usual; none for one that a shell or a function prepares."""
    args = asked["args"]
    if asked["shell"] or asked["preexec_fn"] or asked["executable"] or isinstance(args, str | bytes | os.PathLike):
        return []
    return [os.fsdecode(word) for word in args]


def _kind(command: list[str]) -> str | None:
    """Return the key of what a program imports; None for one that is not ours."""
    if command[0] == str(SCRIPT) or _module(command).partition(".")[0] in ("mllama_cli", "tests"):
        return PROGRAM
    return command[2] if command[:2] == [sys.executable, "-P"] and command[2] in IMPORTED else None


def _module(command: list[str]) -> str:
    """Return the module that Python is told to run, or nothing."""
    program, *words = command
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
    title = b" ".join(map(os.fsencode, command))[: end - start - 2]
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(title + b"\0" + b" " * (end - start - len(title) - 1))  # whose end tells the system of the title
