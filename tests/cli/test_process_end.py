"""How the process of a command ends: without Python's clean-up, but with everything that others rely on."""

import subprocess
import sys
from pathlib import Path

COMMAND = """
import atexit, sys, threading, time
import mllama_cli.cli.app
from mllama_cli.__main__ import run

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()

def slow():
    time.sleep(0.2)
    print("thread")

def app(**_):
    threading.Thread(target=slow).start()
    atexit.register(print, "handler")
    print("answer")
    {ends}

mllama_cli.cli.app.app = app
run()
"""


def ended(ends: str, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    code = COMMAND.replace("{ends}", ends)
    return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def test_threads_and_handlers_end_before_the_process_which_is_not_taken_apart() -> None:
    done = ended("sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "answer\nthread\nhandler\n", "")


def test_an_exit_without_a_code_is_success() -> None:
    assert ended("sys.exit()").returncode == 0


def test_an_unexpected_error_ends_as_python_ends() -> None:
    done = ended("raise LookupError('bug')")
    assert done.returncode == 1
    assert "LookupError: bug" in done.stderr
    assert "taken apart" in done.stdout


def test_output_that_cannot_be_written_at_the_end_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = ended("sys.exit(0)", full.fileno())
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
