"""Helpers for several commands: exit codes, settings, the model to use, JSON output, confirmation."""

import json
import os
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import as_number

if TYPE_CHECKING:
    from mllama_cli.core.settings import Settings
    from mllama_cli.hub.catalog import ModelEntry
    from mllama_cli.terminal.console import Terminal

DEBUG_KEY = "mllama.debug"
"""Key in a command's context: whether --debug was given."""

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
    """Return name and folder of the model to run: as asked, else the default.

    The default is the only installed model, of several the one used last on a terminal or one chosen from a list
    there, and without any the built-in one, with a note. Raise ModelNotFoundError, CheckpointError or UsageError.
    """
    from mllama_cli.core.errors import ModelNotFoundError
    from mllama_cli.hub.catalog import default_model, last_used, remember_used, resolve

    if asked is not None:
        folder = resolve(asked)
        if terminal.stderr_is_tty:
            remember_used(asked)
        return asked, folder
    try:
        entry = default_model()
    except ModelNotFoundError:
        last = last_used()
        if last is None and not (terminal.stdin_is_tty and terminal.stderr_is_tty):
            raise
        entry = last or _chosen_model(terminal)
    if entry.where == "package" and terminal.stderr_is_tty:
        terminal.note(BUILT_IN_NOTE)
    return entry.name, entry.path


def _chosen_model(terminal: "Terminal") -> "ModelEntry":
    """Let the user choose one of the models by its number. Raise UsageError if none was chosen."""
    from mllama_cli.hub.catalog import remember_used, runnable, short_name

    entries = runnable()
    terminal.err.print("Which model? It stays the one in use until you name another with -m.")
    for number, entry in enumerate(entries, start=1):
        terminal.err.print(f"  {number}  {short_name(entry.name)}")
    for _ in range(3):
        terminal.err.print(f"Number (1 to {len(entries)}): ", end="")
        answer = terminal.stdin.readline()
        word = answer.strip()
        chosen = as_number(word)
        if chosen is not None and 1 <= chosen <= len(entries):
            remember_used(entries[chosen - 1].name)
            return entries[chosen - 1]
        if not word:
            break
    raise UsageError("No model was chosen", "Name one with -m, or choose a default: `mllama config set model NAME`.")


def name_for_use(folder: Path) -> str:
    """Return what -m takes for a model's folder: the name of one in the models folder, else the path."""
    from mllama_cli.hub.catalog import models_folder

    return folder.name if folder.parent == models_folder() else str(folder)


def say_how_to_use(terminal: "Terminal", name: str) -> None:
    """Say on a terminal how to run a new model and how to make it the default."""
    import shlex

    if terminal.stderr_is_tty:
        word = shlex.quote(name)
        terminal.note(f"Use it: mllama chat -m {word}")
        terminal.note(f"Make it the default: mllama config set model {word}")


def print_json(terminal: "Terminal", data: Any) -> None:
    """Print JSON: on a terminal indented, else one line. Lone surrogates, which stdout cannot encode, become U+FFFD."""
    terminal.result(json.dumps(data, ensure_ascii=False, indent=2 if terminal.stdout_is_tty else None) + "\n")


def error_fields(message: str, hint: str, kind: str) -> dict[str, str]:
    """Return an error as it is in all JSON output."""
    return {"message": message, "hint": hint, "kind": kind}


def usage_fields(prompt_tokens: int, completion_tokens: int, images: int) -> dict[str, int]:
    """Return what an answer took, as it is in all JSON output."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "images": images}


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
