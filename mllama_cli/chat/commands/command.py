"""What a slash command is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.chat.repl import Repl

ArgumentKind = Literal["none", "text", "path", "image", "model", "chat", "parameter", "number"]


@dataclass(frozen=True)
class Action:
    """One command under one or several names (without the slash).

    ``usage`` is what follows the name, "" for nothing; ``kind`` says what Tab completes there.
    """

    names: tuple[str, ...]
    usage: str
    kind: ArgumentKind
    help: str
    run: "Callable[[Repl, str], None]"

    @property
    def call(self) -> str:
        """As a person types it."""
        return f"/{self.names[0]} {self.usage}".rstrip()


def needed(argument: str, action: str, what: str) -> str:
    """``argument``, or UsageError where it is empty."""
    if not argument:
        raise UsageError(f"/{action} needs {what}", "/? lists all commands.")
    return argument
