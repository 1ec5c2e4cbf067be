"""Python's garbage collector, paused while modules are imported: nothing that they make is garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """Collect nothing within the block.

    The collector would look through the same objects again and again: a sixth of the time that importing torch takes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
