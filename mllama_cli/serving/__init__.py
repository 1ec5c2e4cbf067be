"""Serve a model over HTTP in the protocols of OpenAI and ollama.

``create_app`` returns an ASGI application for those who embed it; `mllama serve` runs one.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mllama_cli.serving.app import create_app as create_app
    from mllama_cli.serving.settings import ServerSettings as ServerSettings

_HOMES = {"create_app": "mllama_cli.serving.app", "ServerSettings": "mllama_cli.serving.settings"}

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # on first use, since the application imports torch
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
