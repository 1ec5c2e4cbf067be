"""NCCL between the ranks' GPUs, as torch provides it, and its end, which may not keep this process waiting."""

import os
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed

from mllama_cli.engine.parallel.plan import Share

dist: Any = torch.distributed
"""The module's groups as objects, without its one group for the process: their types are not declared."""


def nccl_backend(store: Any, share: Share, timeout: timedelta) -> Any:
    """Return torch's NCCL backend of one rank, which connects with the first operation."""
    os.environ["NCCL_NVLS_ENABLE"] = "0"  # NVLink multicast can take down a host that several users share
    # torch's monitor ends the process where NCCL takes minutes to end; other ranks' deaths are noticed by other means.
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, share.rank, share.count, options)


class NcclEnd:
    """The end of a backend, on a thread of its own.

    To abort NCCL waits until every CUDA graph that holds one of its operations is gone, and so would torch's destructor
    of the backend, in whatever thread drops the last reference to it. The thread therefore keeps one until it has
    aborted it, for good if it never can. It starts now, because a process that is exiting cannot start threads.
    """

    def __init__(self, backend: Any) -> None:
        self._begin, self._ended = threading.Event(), threading.Event()
        threading.Thread(
            target=_abort_when_told, args=(backend, self._begin, self._ended), name="end of NCCL", daemon=True
        ).start()

    def begin(self) -> None:
        """End operations that wait, and then the communicator. For any thread."""
        self._begin.set()

    def wait(self, seconds: float) -> bool:
        """Return whether NCCL has ended, at the latest after so long."""
        return self._ended.wait(seconds)


def _abort_when_told(backend: Any, begin: threading.Event, ended: threading.Event) -> None:
    begin.wait()
    with suppress(RuntimeError):  # the error of a rank that is lost
        backend.abort()
        ended.set()
