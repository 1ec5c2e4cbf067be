"""What users can set by a flag, in the config file or with `/set`: declared in the fields of a dataclass."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, get_args, get_origin

from mllama_cli.core.errors import UsageError

_WORDS = {str: "text in quotes", float: "a number", int: "a whole number", bool: "true or false"}
_TRUTH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def _anything(value: Any) -> bool:
    return True


@dataclass(frozen=True)
class Parameter:
    """What a value must be, and what help says of it. ``name``, ``type`` and ``repeated`` come from the field.

    ``must`` says in words what ``check`` demands. ``flags`` are further flags besides ``flag``; ``aliases`` are other
    tools' names, ollama's above all, that `/set` understands. ``truncates``: drops unlikely tokens when sampling.
    """

    help: str = ""
    check: Callable[[Any], object] = _anything
    must: str = ""
    flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    truncates: bool = False
    name: str = ""
    type: type = str
    repeated: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def require(self, value: Any, label: str) -> None:
        """Raise UsageError, which begins with ``label``, unless the value is in range."""
        if not self.check(value):
            raise UsageError(f"{label} must {self.must}, not {value!r}", f"It means: {self.help}." if self.help else "")

    def converted(self, value: Any, label: str) -> Any:
        """Return a value from a config file in this parameter's type. Raises UsageError for a wrong type or range."""
        values = value if self.repeated and isinstance(value, list | tuple) else [value]
        if self.type is float:
            values = [float(each) if type(each) is int else each for each in values]
        if any(type(each) is not self.type for each in values):
            wanted = "a list of texts" if self.repeated else _WORDS[self.type]
            raise UsageError(f"{label} must be {wanted}, not {value!r}", f"It means: {self.help}.")
        result = tuple(values) if self.repeated else values[0]
        self.require(result, label)
        return result

    def parsed(self, text: str, label: str) -> Any:
        """Return what was typed in a shell or a chat as a value. Raises UsageError."""
        value: Any = text
        if self.type is bool:
            value = _TRUTH.get(text.lower(), text)
        elif self.type in (int, float):
            with suppress(ValueError):  # else ``converted`` says what is wrong with the text
                value = self.type(text)
        return self.converted(value, label)


def declare(help: str = "", check: Callable[[Any], object] = _anything, must: str = "", **more: Any) -> Any:
    """Return the metadata of a field that is a parameter."""
    return {"parameter": Parameter(help, check, must, **more)}


def one_of(choices: tuple[str, ...]) -> tuple[Callable[[Any], object], str]:
    """Return the check, and its words, of a parameter that has one of a few values."""
    return choices.__contains__, f"be one of {', '.join(choices)}"


def parameters_of(cls: type) -> dict[str, Parameter]:
    """Return what the fields of a dataclass declare, by name and in their order."""
    return {
        each.name: replace(
            each.metadata["parameter"],
            name=each.name,
            type=next((hint for hint in get_args(each.type) if hint is not NoneType), each.type),
            repeated=get_origin(each.type) is tuple,
        )
        for each in fields(cls)
        if "parameter" in each.metadata
    }
