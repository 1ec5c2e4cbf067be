"""Start and end Python processes of our own for work on strangers' files.

They are ordinary child processes, not multiprocessing's, which would run the user's script once more in each.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

PIPE_BYTES = 2**20


def start_worker(
    script: str, more: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Run a file, by default one of this folder, with pipes for stdin and stdout. Raise OSError.

    ``more`` is added to its environment. Its arguments are the ``descriptors``, which it inherits. Ctrl-C does not
    reach it. What it writes to stderr is dropped.
    """
    worker = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).parent / script), *map(str, descriptors)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(more or {})},
        pass_fds=descriptors,
        start_new_session=True,
    )
    for stream in (worker.stdin, worker.stdout):
        _widen(stream)
    return worker


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold more, where the system can, so that an image does not change processes sixty times."""
    if sys.platform == "linux" and pipe is not None:
        import fcntl

        with suppress(OSError):  # beyond what this user may have
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def limit_memory(size: int) -> None:
    """Make any allocation beyond ``size`` bytes in all fail, where the system can."""
    if sys.platform == "linux":
        import resource

        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (size, hard))


def end_worker(worker: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and close its pipes."""
    worker.kill()
    worker.wait()
    for stream in (worker.stdin, worker.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
