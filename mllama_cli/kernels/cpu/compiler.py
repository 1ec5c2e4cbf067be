"""Find a C++ compiler, and run it for a limited time."""

import os
import shlex
import shutil
import signal
import subprocess

from mllama_cli.core.text import one_line


class CompilerError(Exception):
    """A compiler that fails; the message is one line for the user."""


class CompilerHangsError(CompilerError):
    """A compiler that does not end."""


def find_compiler() -> list[str] | None:
    """Return the command of a C++ compiler: $CXX, else the first one on the path."""
    if os.name != "posix":
        return None
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError:  # a quotation mark that is not closed
        chosen = []
    for command in (chosen, ["c++"], ["g++"], ["clang++"]):
        if command and (path := shutil.which(command[0])):
            return [path, *command[1:]]
    return None


def run_compiler(command: list[str], seconds: float) -> bytes:
    """Return what a command prints. Raise CompilerError if it fails, or for more than ``seconds`` of time.

    What it has started itself ends with it, also on Ctrl-C.
    """
    name = command[0]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise CompilerError(f"{name} cannot be run: {getattr(error, 'strerror', None) or error}") from error
    with process:
        try:
            out, errors = process.communicate(timeout=seconds)
        except BaseException as error:
            # Its children hold the pipes, and would be waited for.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CompilerHangsError(f"{name} did not end within {seconds:.0f} seconds") from error
            raise
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        why = next((line for line in said if "error" in line.lower()), said[-1])
        raise CompilerError(f"{name} failed: {one_line(why, 200)}")
    return out
