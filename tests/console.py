"""Run the `mllama` command in this process (fast) or through the installed console script (as a user does)."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("mllama")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return self.err.strip().splitlines()


class Stream(TextIOWrapper):
    """A standard stream over bytes that may claim to be a terminal."""

    def __init__(self, data: bytes = b"", *, tty: bool = False) -> None:
        super().__init__(BytesIO(data), encoding="utf-8", newline="")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, BytesIO)
        return buffer.getvalue().decode()


def run_here(*arguments: str, stdin: bytes | None = None, typed: bytes = b"", screen: bool = False) -> Result:
    """Run the app in this process. ``stdin`` None is a terminal on which ``typed`` is entered.

    stdout and stderr are pipes, or with ``screen`` a terminal of $COLUMNS columns.
    """
    from mllama_cli.cli.app import app

    streams = Stream(stdin or typed, tty=stdin is None), Stream(tty=screen), Stream(tty=screen)
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        code = 0
        try:
            app(list(arguments), prog_name="mllama")
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        return Result(code, streams[1].text(), streams[2].text())


def run_script(
    *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 120
) -> Result:
    """Run the installed console script in its own process; stdin, stdout and stderr are pipes."""
    done = subprocess.run(
        [str(SCRIPT), *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())
