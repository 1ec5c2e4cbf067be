"""``python -m mllama_cli`` and the ``mllama`` script."""

import signal


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
    main()
