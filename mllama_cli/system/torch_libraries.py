"""Load torch's shared libraries before Python imports torch, which would do so with its lock held."""

import ctypes
import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("libtorch_global_deps.so", "libtorch.so")
"""In torch's order. The first, whose names are global, has what the others need: CUDA's libraries, where there are."""


def load_libraries() -> threading.Thread | None:
    """Start a thread that loads them. Return None where torch is not a package with such libraries.

    Python can do other work meanwhile, as long as it needs no other library. Nothing is reported: torch meets the same
    errors.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return None
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    thread = threading.Thread(
        target=_load, args=(Path(spec.origin).parent / "lib",), name="torch's libraries", daemon=True
    )
    thread.start()
    return thread


def _load(folder: Path) -> None:
    dlopen = ctypes.CDLL(None).dlopen  # as a function: CDLL would call it with Python's lock held
    dlopen.restype = ctypes.c_void_p
    for name in LIBRARIES:
        mode = os.RTLD_NOW | (os.RTLD_GLOBAL if name == LIBRARIES[0] else 0)
        dlopen(os.fsencode(folder / name), mode)
