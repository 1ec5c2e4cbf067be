"""The type of slash commands."""

from collections.abc import Callable
from dataclasses import dataclass

from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import UsageError
from mllama_cli.terminal.completer import CommandHelp


@dataclass(frozen=True)
class Command(CommandHelp):
    """A slash command; ``run`` gets the rest of the line."""

    run: Callable[[Shell, str], None]


def require(argument: str, command: str, what: str) -> str:
    """Return ``argument``. Raise UsageError if it is empty."""
    if not argument:
        raise UsageError(f"/{command} needs {what}", "/? lists all commands.")
    return argument
