"""Which model a command runs: the one that was asked for, else the only one here, else the built-in one."""

from pathlib import Path

from mllama_cli.terminal.console import Terminal

BUILT_IN_NOTE = "This is the small built-in model: it knows only simple drawings. For a real one: mllama download 11b"


def chosen_model(asked: str | None, terminal: Terminal) -> tuple[str, Path]:
    """(name, folder); a note where it is the built-in one for want of another. Raises ModelNotFoundError and kin."""
    from mllama_cli.hub.catalog import default_model, resolve

    if asked is not None:
        return asked, resolve(asked)
    entry = default_model()
    if entry.where == "package":
        terminal.note(BUILT_IN_NOTE)
    return entry.name, entry.path
