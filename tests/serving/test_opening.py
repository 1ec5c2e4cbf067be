"""An engine that is told to end while its model loads."""

import signal
import subprocess
import sys

import pytest

LOADS_FOR_AN_HOUR = """
import os, time
from mllama_cli.serving.idle import IdleEnd
from mllama_cli.serving.opening import Opening
from mllama_cli.serving.run import serve
from mllama_cli.serving.sockets import bind

def load(report):
    time.sleep(3600)

opening = Opening("large", load, IdleEnd(60, lambda: None), lambda: None, grace=30)
with bind("127.0.0.1", 0) as bound:
    ended_by = serve(opening, opening, [bound], ready=lambda: print("listens", flush=True))
print("ended by", ended_by, flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_a_signal_ends_it_before_the_model_is_loaded() -> None:
    with subprocess.Popen([sys.executable, "-c", LOADS_FOR_AN_HOUR], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listens\n"
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=60)[0] == f"ended by {signal.SIGTERM.value}\n"
        finally:
            process.kill()
