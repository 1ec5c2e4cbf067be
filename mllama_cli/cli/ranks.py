"""Models over several processes: started by torchrun, and ended with any of them."""

import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.core.errors import EngineError
    from mllama_cli.engine.engine import Engine
    from mllama_cli.engine.parallel.crew import Crew

LOST_SECONDS = 2.0
"""How long a command may take to end by itself when a rank has ended."""


def launched() -> tuple[int, int] | None:
    """Return (rank, number of ranks) if torchrun has started several processes of this one; else None."""
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ["LOCAL_RANK"])
    except (KeyError, ValueError):
        return None
    if count < 2 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    if local != rank:
        raise UsageError("A model runs on the devices of one machine only", "Use torchrun --nnodes 1.")
    return rank, count


def follow_launched(rank: int) -> None:
    """Do what rank 0 says until it ends. Imports torch."""
    from mllama_cli.engine.follower import follow_at

    follow_at(_meeting(), rank)


def meeting() -> Path | None:
    """Return the socket at which the ranks that torchrun has started meet; None if it has not."""
    return None if launched() is None else _meeting()


def devices_of(given: str | None) -> str | None:
    """Return the devices of a command: one for each rank if torchrun has started it, else as they were given.

    Raise UsageError for another number of devices.
    """
    world = launched()
    if world is None:
        return given
    count = world[1]
    if given in (None, "auto", "cuda"):
        import torch

        given = ",".join(f"cuda:{index}" for index in range(count)) if torch.cuda.is_available() else "cpu"
    if given == "cpu":
        given = ",".join(["cpu"] * count)
    assert given is not None
    if given != "cuda:all" and given.count(",") + 1 != count:
        raise UsageError(f"--device {given} does not name {count} devices, one for each process of torchrun")
    return given


def begin_ranks(device: str) -> "Crew | None":
    """Start the processes of the other devices in a list, which import torch while this one does.

    Return None if there are none, if torchrun has started them, or where this system cannot.
    """
    if "," not in device or launched() is not None:
        return None
    from mllama_cli.engine.parallel.crew import begin

    return begin(device)


def end_with_ranks(engine: "Engine") -> None:
    """End this process when another rank of the engine ends, at the latest some seconds after it."""
    if engine.model.team is not None:
        crew = engine.model.team.crew
        crew.on_lost = partial(_end, crew)


def _end(crew: "Crew", error: "EngineError") -> None:
    time.sleep(LOST_SECONDS)  # mostly the command says so itself, and this thread ends with the process
    from mllama_cli.terminal.console import Terminal

    _reset_terminal()
    if not crew.told:
        Terminal().error(error.message, error.hint)
    sys.stderr.flush()
    os._exit(1)


def _reset_terminal() -> None:
    """Let the terminal show and edit what is typed again, which a prompt changes, and begin a new line."""
    with suppress(ImportError, OSError, ValueError, AttributeError):
        import termios

        descriptor = sys.stdin.fileno()
        with suppress(termios.error):
            modes = termios.tcgetattr(descriptor)
            modes[0] |= termios.ICRNL | termios.IXON
            modes[1] |= termios.OPOST
            modes[3] |= termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN
            termios.tcsetattr(descriptor, termios.TCSANOW, modes)
            sys.stderr.write("\n")


def _meeting() -> Path:
    from mllama_cli.remote.engines import usable_folder

    return usable_folder() / f"ranks-{os.environ.get('MASTER_PORT', '0')}.sock"
