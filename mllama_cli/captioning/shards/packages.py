"""Import the packages that only shards need, with an error that says how to get them."""

import importlib
from typing import Any

from mllama_cli.core.errors import UsageError

_EXTRAS = {"pyarrow": "data", "fsspec": "data", "ray": "ray"}


def required(module: str) -> Any:
    """Return a module of an optional package. Raise UsageError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module.partition(".")[0]) from error


def missing(package: str) -> UsageError:
    """Return the error that a package is not installed."""
    extra = _EXTRAS.get(package)
    name = f"'mllama-cli[{extra}]'" if extra else package
    return UsageError(f"The package {package} is needed for this, and is not installed", f"Run `pip install {name}`.")
