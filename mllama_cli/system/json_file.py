"""Read the JSON files of a checkpoint folder."""

import json
from pathlib import Path
from typing import Any

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise CheckpointError if the file is missing, damaged or not an object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing in {path.parent}", "The model folder is incomplete.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", COPY_AGAIN) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", COPY_AGAIN)
    return data
