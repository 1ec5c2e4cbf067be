"""The type of slash commands."""

from collections.abc import Callable
from dataclasses import dataclass

from mllama_cli.chat.shell import Shell
from mllama_cli.chat.storage.saved import printable, shortened
from mllama_cli.core.errors import UsageError
from mllama_cli.terminal.completer import CommandHelp


@dataclass(frozen=True)
class Command(CommandHelp):
    """A slash command; ``run`` gets the rest of the line."""

    run: Callable[[Shell, str], None]

    def __call__(self, shell: Shell, argument: str) -> None:
        """Run the command. Raise UsageError for an argument that it does not take."""
        if argument and self.kind == "none":
            raise UsageError(f"/{self.names[0]} takes no argument, not {shortened(printable(argument))!r}", self.help)
        self.run(shell, argument)


def switched(argument: str, command: str) -> bool:
    """Return whether ``argument`` says on (as nothing does) or off. Raise UsageError for anything else."""
    if argument not in ("", "on", "off"):
        raise UsageError(f"/{command} takes on or off, not {shortened(printable(argument))!r}", "")
    return argument != "off"


def require(argument: str, command: str, what: str) -> str:
    """Return ``argument``. Raise UsageError if it is empty."""
    if not argument:
        raise UsageError(f"/{command} needs {what}", "/? lists all commands.")
    return argument
