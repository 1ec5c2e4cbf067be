"""What several commands need: exit codes, the user's settings, and which model is meant."""

import os
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

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
        return Path(os.path.expanduser(given))  # noqa: PTH111 - unlike Path's, it leaves a ~ of nobody's as it is
    from mllama_cli.system.paths import config_folder

    return config_folder() / "config.toml"


def load_settings() -> "Settings":
    """Return the settings of the config file. Raises UsageError for a file that cannot be understood.

    Flags take precedence over them, and so does the environment.
    """
    from mllama_cli.core.settings import read_settings

    return read_settings(config_path())


def resolve_model(asked: str | None, terminal: "Terminal") -> tuple[str, Path]:
    """Return name and folder of the model to run: the one asked for, else the only one here, else the built-in one.

    Prints a note where it is the built-in one for want of another. Raises ModelNotFoundError and related errors.
    """
    from mllama_cli.hub.catalog import default_model, resolve

    if asked is not None:
        return asked, resolve(asked)
    entry = default_model()
    if entry.where == "package":
        terminal.note(BUILT_IN_NOTE)
    return entry.name, entry.path
