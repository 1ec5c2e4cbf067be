"""An image that kills the process that reads it, as a file does that makes a decoder crash."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def trap(path: Path) -> Iterator[None]:
    """Make a named pipe and, meanwhile, kill the worker that opens it: any process that this one starts from now on."""
    os.mkfifo(path)
    stop, others = threading.Event(), psutil.Process().children()

    def kill_readers() -> None:
        while not stop.wait(0.02):
            with suppress(OSError):  # nobody reads it
                writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                for worker in psutil.Process().children():
                    if worker not in others:
                        with suppress(psutil.NoSuchProcess):
                            worker.kill()
                os.close(writing)

    killer = threading.Thread(target=kill_readers)
    killer.start()
    try:
        yield
    finally:
        stop.set()
        killer.join()
