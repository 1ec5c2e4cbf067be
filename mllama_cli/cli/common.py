"""Helpers for several commands: exit codes, settings, the model to use, JSON output, confirmation."""

import json
import os
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.core.settings import Settings
    from mllama_cli.terminal.console import Terminal

BUILT_IN_NOTE = "This is the small built-in model: it knows only simple drawings. For a real one: mllama download 11b"


class ExitStatus(IntEnum):
    """0 done, 1 failure, 2 a request that cannot be carried out, 3 partly done, 130 interrupted with Ctrl-C."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    PARTLY = 3
    INTERRUPTED = 130


def config_path() -> Path:
    """Return MLLAMA_CONFIG, else config.toml in the user's config folder. It may not exist."""
    if given := os.environ.get("MLLAMA_CONFIG"):
        from mllama_cli.system.files import expanded

        return expanded(given)
    from mllama_cli.system.paths import config_folder

    return config_folder() / "config.toml"


def load_settings() -> "Settings":
    """Return the settings of the config file, which flags override. Raise UsageError if it is invalid."""
    return read_settings(config_path())


def read_settings(path: Path) -> "Settings":
    """Return the settings in a config file; empty ones if it does not exist. Raise UsageError if it is invalid."""
    from mllama_cli.core.settings import Settings, parse_settings
    from mllama_cli.system.json_file import read_toml

    try:
        table = read_toml(path, "Example line: temperature = 0.5")
    except UsageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Settings()
        raise
    return parse_settings(table, str(path))


def resolve_model(asked: str | None, terminal: "Terminal") -> tuple[str, Path]:
    """Return name and folder of the model to run: as asked, else the only installed one, else the built-in one.

    Falling back to the built-in model prints a note. Raise ModelNotFoundError or CheckpointError.
    """
    from mllama_cli.hub.catalog import default_model, resolve

    if asked is not None:
        return asked, resolve(asked)
    entry = default_model()
    if entry.where == "package":
        terminal.note(BUILT_IN_NOTE)
    return entry.name, entry.path


def print_json(terminal: "Terminal", data: Any) -> None:
    """Print indented JSON. Lone surrogates, which stdout cannot encode, become U+FFFD."""
    terminal.result(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def require_confirmation(terminal: "Terminal", *, given: bool) -> None:
    """Raise UsageError if there is no terminal to ask on before deleting and --yes was not ``given``."""
    if not given and not terminal.stdin_is_tty:
        from mllama_cli.core.errors import UsageError

        raise UsageError("rm asks before it deletes, but there is no terminal to ask on", "Add --yes.")


def confirmed(terminal: "Terminal", what: str) -> bool:
    """Ask whether to delete something. Only an explicit yes counts."""
    terminal.err.print(f"Delete {what}? [y/N] ", end="")
    if terminal.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    terminal.note("Not deleted.")
    return False
