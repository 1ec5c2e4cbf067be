"""End a running engine."""

import os
import signal
import socket
import sys
import time
from contextlib import suppress

from mllama_cli.core.errors import EngineError
from mllama_cli.remote.client import Address, Client
from mllama_cli.remote.engines import running
from mllama_cli.remote.question import STOP_PATH
from mllama_cli.system.loopback import PortRecord
from mllama_cli.system.private_sockets import has_unix_sockets, peer_process

STOP_SECONDS = 40.0
"""Longer than an engine lets its running answers end."""
KILLED_SECONDS = 10.0
_POLL_SECONDS = 0.05


def stop(address: Address) -> None:
    """End an engine in order, or kill it if it does not answer. Raise EngineError if it runs on."""
    asked = False
    with suppress(EngineError):  # it ends now, or it hangs
        Client(address, silence=KILLED_SECONDS).call("POST", STOP_PATH, {})
        asked = True
    if asked and _has_ended(address, STOP_SECONDS):
        return
    with suppress(OSError):
        if (process := _process(address)) is not None:
            os.kill(process, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)  # there SIGTERM kills
    if not _has_ended(address, KILLED_SECONDS):
        raise EngineError(f"The engine on {address} does not end", "Find its process with `lsof` and kill it.")


def _has_ended(address: Address, seconds: float) -> bool:
    """Wait until nobody holds the engine's lock; return whether that is so in time."""
    end = time.monotonic() + seconds
    while address in running():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _process(address: Address) -> int | None:
    """Return the id of the process that listens on a socket; None if the system does not say."""
    assert address.file is not None
    if not has_unix_sockets():
        return PortRecord.read(address.file).process
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.settimeout(1)
        connected.connect(str(address.file))
        return peer_process(connected)
