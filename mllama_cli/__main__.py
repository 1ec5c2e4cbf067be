"""``python -m mllama_cli`` and the ``mllama`` script."""

import atexit
import os
import signal
import sys


def run() -> None:
    """Run the command as this process, and end it without Python's own clean-up.

    Taking torch's modules and a GPU's context apart takes half a second to a second. What has to be done at the end is
    done: threads are joined and all handlers of ``atexit`` that were registered later run before ours.
    """
    status: list[int] = []
    atexit.register(_end, status)
    try:
        main()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            status.append(leaving.code or 0)
        raise


def _end(status: list[int]) -> None:
    if not status or "coverage" in sys.modules:  # whose own handler, registered earlier, has yet to run
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return  # Python flushes again, and reports the error
    os._exit(status[0])


def main() -> None:
    """Run the command. While Python imports and ends, Ctrl-C ends the process at once instead of with a traceback."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it was ignored, as by nohup
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mllama_cli.cli.app import app

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(prog_name="mllama")
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
