"""Start processes with torch and the application already imported, for tests that kill many.

A process that has never computed forks for each of them, so that each is otherwise as fresh as a new one.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]
IMPORTED = (
    "torch",
    "mllama_cli.captioning.run",
    "mllama_cli.cli.caption_run",
    "mllama_cli.engine.batch.run",
    "mllama_cli.engine.engine",
    "mllama_cli.quantization.quantize",
    "mllama_cli.captioning.shards.run",
)


class Prepared:
    """Starts functions (``module:name``, given words, returning an exit code). Use as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.prepared"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # no threads that a fork would lose
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Prepared":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.communicate(timeout=60)

    def start(self, function: str, words: Sequence[str], env: Mapping[str, str], errors: Path) -> "Started":
        """Start a function; its stderr goes into the file ``errors``."""
        return Started(self, int(self.ask("start", function, list(words), dict(env), str(errors))))

    def ask(self, *request: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


class Started:
    def __init__(self, by: Prepared, pid: int) -> None:
        self._by, self._pid = by, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code once it has ended, negative for a signal."""
        if self._code is None and (code := self._by.ask("poll", self._pid)):
            self._code = int(code)
        return self._code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """Kill it without warning, and wait until it is gone."""
        if self.poll() is None:
            os.kill(self._pid, signal.SIGKILL)
            self.wait()


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        what, *rest = json.loads(line)
        if what == "start":
            answer = str(fork(*rest))
        else:
            pid, status = os.waitpid(rest[0], os.WNOHANG)
            answer = str(os.waitstatus_to_exitcode(status)) if pid else ""
        print(answer, flush=True)


def fork(function: str, words: list[str], env: dict[str, str], errors: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.environ.clear()
        os.environ.update(env)
        module, _, name = function.partition(":")
        code = getattr(importlib.import_module(module), name)(*words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def command(*words: str) -> int:
    """Run the `mllama` command."""
    from mllama_cli.cli.app import app

    sys.argv = ["mllama", *words]
    try:
        app(list(words), prog_name="mllama")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


if __name__ == "__main__":
    serve()
