"""What a chat has saved."""

import json
import os
import subprocess

from tests.console import SCRIPT


def saved(env: dict[str, str], name: str = "1") -> list[dict[str, object]]:
    """Return the messages of a saved chat."""
    done = subprocess.run(
        [SCRIPT, "history", "show", name, "--json"], env={**os.environ, **env}, capture_output=True, check=True
    )
    result: list[dict[str, object]] = json.loads(done.stdout)["messages"]
    return result


def texts(messages: list[dict[str, object]]) -> list[str]:
    """Return what was said, without images."""
    said = []
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        said.append("".join(part.get("text", "") for part in parts))
    return said
