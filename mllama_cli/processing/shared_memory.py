"""Memory that a process shares with a worker: pixels need not pass through a pipe, which copies them twice."""

import mmap
import os
import sys
from contextlib import suppress

SHARED_BYTES = 2**22
"""More than the pixels of four tiles of 560 x 560."""


def share() -> tuple[int, mmap.mmap] | None:
    """Return new memory, with a descriptor for the worker; None where the system does not have such memory.

    The worker, which may have been taken over, cannot make it smaller: reading what is gone would end this process.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    with suppress(OSError):
        descriptor = os.memfd_create("mllama", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, SHARED_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return descriptor, _mapped(descriptor)
        except OSError:
            os.close(descriptor)
            raise
    return None


def attach(descriptor: int) -> mmap.mmap:
    """Return the memory of a descriptor that ``share`` has made, in the worker."""
    try:
        return _mapped(descriptor)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int) -> mmap.mmap:
    # With its pages at once: later a page fault for each would take longer than copying it.
    return mmap.mmap(descriptor, SHARED_BYTES, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
