"""mllama: Llama 3.2 Vision on your own GPU or CPU, from the terminal or from Python.

The public names load on first use (PEP 562), so importing the package, and ``mllama --help``, never imports torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES: dict[str, str] = {}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
