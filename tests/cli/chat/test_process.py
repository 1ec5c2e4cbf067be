"""`mllama chat` as a process: Ctrl-C, and a stdout that is closed or full."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.console import SCRIPT


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(SCRIPT), "chat", "--device", "cpu", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_ctrl_c_keeps_what_was_said_and_exits_130() -> None:
    process = start("--max-tokens", "2000", "Hello")
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert b"Traceback" not in err


@pytest.mark.parametrize("options", [(), ("--verbose",)])
def test_a_closed_pipe_ends_the_answer_quietly(options: tuple[str, ...]) -> None:
    """An answer that went on would have statistics at its end."""
    process = start("--max-tokens", "2000", *options, "Hello")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert err == (b"The model is loaded in this process.\n" if options else b"")
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a device of Linux")
@pytest.mark.parametrize("command", ["chat --max-tokens 20 hello", "list", "chat --help", "--version"])
def test_a_full_disk_behind_stdout_is_one_clear_error(command: str) -> None:
    code, err = with_stdout(command, ">/dev/full")
    assert (code, err[0]) == (1, "mllama: No space left on device")
    assert len(err) == 2


def test_a_closed_stdout_is_one_clear_error() -> None:
    code, err = with_stdout("chat --max-tokens 20 hello", ">&-")
    assert (code, err[0]) == (1, "mllama: stdout is closed, so the answer has nowhere to go")
    assert len(err) == 2


def with_stdout(command: str, redirection: str) -> tuple[int, list[str]]:
    """Exit code and lines of stderr."""
    line = f"{SCRIPT} {command} </dev/null {redirection}"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.splitlines()
