"""Run one hostile input in a process of its own, and judge whether the program survived it."""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.text import MAX_LINE, one_line

MAX_MEMORY = 1_100_000_000
"""Bytes that any input may take: a picture may take 0.9 GB."""
MAX_SECONDS = 60.0
GUARD_BYTES = 12 * 2**30
"""Address space of a case, so that one that fails does not take the machine down."""

SECRET = "hunter2"
"""The password in hostile addresses, which must never be shown."""


@dataclass(frozen=True)
class Case:
    """An input: ``attempt`` gets an empty folder. It returns, or raises an MllamaError, or the program has failed.

    ``prepare`` makes large files in that folder first, in a process of its own, which does not count.
    ``heavy`` cases take more than a second or many MB.
    """

    name: str
    attempt: Callable[[Path], object]
    heavy: bool = False
    prepare: Callable[[Path], object] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``problem`` is empty if the program survived.

    ``memory`` is the peak of its process in bytes, or of a child of that, without what the empty program takes.
    """

    name: str
    problem: str
    memory: int
    seconds: float


def empty_program() -> int:
    """Return the bytes that a case takes which does nothing."""
    return run(Case("nothing", lambda _: None)).memory


def run(case: Case, empty: int = 0, max_memory: int = MAX_MEMORY, max_seconds: float = MAX_SECONDS) -> Outcome:
    """Run a case in a child process. It fails by another exception, a crash, output of a library, or a limit.

    ``empty`` is the result of ``empty_program``.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        if case.prepare is not None:
            child = os.fork()
            if child == 0:
                _attempt(case.prepare, Path(folder), output.fileno())
            os.waitpid(child, 0)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _attempt(case.attempt, Path(folder), output.fileno())
        status, usage = _wait(child, started + max_seconds)
        seconds = time.monotonic() - started
        output.seek(0)
        printed = output.read(4000).decode("utf-8", "replace").strip()
    memory = max(0, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) - empty)
    if status is None:
        problem = f"it takes more than {max_seconds:g} seconds"
    elif os.WIFSIGNALED(status):
        problem = f"it is killed by {signal.Signals(os.WTERMSIG(status)).name}"
    elif status != 0 or printed:
        problem = f"it says: {printed.splitlines()[-1] if printed else 'nothing'}"
    else:
        problem = f"it takes {memory // 10**6} MB" if memory > max_memory else ""
    return Outcome(case.name, problem, memory, seconds)


def _wait(child: int, end: float) -> tuple[int | None, resource.struct_rusage]:
    """Return a child's status, None if it had to be killed, and what it and its own children used."""
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage
        if time.monotonic() > end:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return None, os.wait4(child, 0)[2]
        time.sleep(0.002)


def _attempt(attempt: Callable[[Path], object], folder: Path, output: int) -> None:
    """Call ``attempt`` and end this process."""
    code = 1
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (GUARD_BYTES, GUARD_BYTES))
        try:
            attempt(folder)
        except MllamaError as error:
            check_message(error)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def check_message(error: MllamaError) -> None:
    """Require that an error says something, on a line that a terminal may show, and no password."""
    assert error.message, "an error without a message"
    assert len(one_line(error.message)) <= MAX_LINE, "a message of more than a line"
    assert SECRET not in error.message + error.hint + str(error), "a password is shown"
