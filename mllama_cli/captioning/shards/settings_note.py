"""Note in the folder of outputs how they were made, so that no other command mixes its captions with them."""

import json
from collections.abc import Mapping
from typing import Any

from mllama_cli.captioning.shards.store import Store
from mllama_cli.core.errors import CaptionError, UsageError
from mllama_cli.core.text import shown
from mllama_cli.system.json_file import parse_object

SETTINGS = "_settings.json"


def require_same_settings(store: Store, folder: str, settings: Mapping[str, Any]) -> None:
    """Write down the settings of a run, if there are none. Raise UsageError if other ones are there."""
    path = f"{folder.rstrip('/')}/{SETTINGS}"
    text = json.dumps(settings, ensure_ascii=False, indent=2, sort_keys=True)
    if store.create(path, text.encode("utf-8", "replace")):
        return
    found = parse_object(store.read(path) or b"", path, error=CaptionError, hint="Delete it if it is not ours.")
    ours = json.loads(text)
    different = [name for name in sorted({*ours, *found}) if ours.get(name) != found.get(name)]
    if different:
        name = different[0]
        raise UsageError(
            f"{folder} has captions of another command: its {name} is {shown(found.get(name))}",
            "Name another folder, or delete that one to begin again.",
        )
