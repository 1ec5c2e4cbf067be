"""Declare parameters, set by a flag, in the config file or with `/set`, in the fields of a dataclass."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, get_args, get_origin

from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import shown

_WORDS = {str: "text in quotes", float: "a number", int: "a whole number", bool: "true or false"}
_LISTS = {str: "a list of texts", float: "a list of numbers", int: "a list of whole numbers"}
_TRUTH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


Range = tuple[Callable[[Any], object], str]


def _anything(value: Any) -> bool:
    return True


@dataclass(frozen=True)
class _OneOf:
    """Accepts some values."""

    choices: tuple[Any, ...]

    def __call__(self, value: Any) -> bool:
        return value in self.choices


@dataclass(frozen=True)
class Parameter:
    """The check and help text of a value. ``name``, ``type`` and ``repeated`` come from the field.

    ``must`` puts ``check`` into words. ``flags`` are flags in addition to ``flag``; ``aliases`` are other tools' names,
    mostly ollama's, that `/set` accepts. ``truncates`` marks parameters that drop unlikely tokens when sampling.
    ``booleans`` are what false and true meant before the parameter became a text.
    """

    help: str = ""
    check: Callable[[Any], object] = _anything
    must: str = ""
    flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    truncates: bool = False
    booleans: tuple[str, str] | None = None
    name: str = ""
    type: type = str
    repeated: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """All values, as they are typed, if there are few."""
        if self.type is bool:
            return ("true", "false")
        return tuple(map(str, self.check.choices)) if isinstance(self.check, _OneOf) else ()

    def require(self, value: Any, label: str) -> None:
        """Raise UsageError, starting with ``label``, unless the value is in range."""
        if not self.check(value):
            raise UsageError(
                f"{label} must {self.must}, not {shown(value)}", f"It means: {self.help}." if self.help else ""
            )

    def converted(self, value: Any, label: str) -> Any:
        """Return a config file's value in this parameter's type. Raise UsageError for a wrong type or range."""
        values = value if self.repeated and isinstance(value, list | tuple) else [value]
        if self.booleans is not None:
            values = [self.booleans[each] if type(each) is bool else each for each in values]
        if self.type is float:
            with suppress(OverflowError):  # an int beyond any float stays one, which is reported
                values = [float(each) if type(each) is int else each for each in values]
        if any(type(each) is not self.type for each in values):
            wanted = _LISTS[self.type] if self.repeated else _WORDS[self.type]
            raise UsageError(f"{label} must be {wanted}, not {shown(value)}", f"It means: {self.help}.")
        result = tuple(values) if self.repeated else values[0]
        self.require(result, label)
        return result

    def parsed(self, text: str, label: str) -> Any:
        """Return the value of a text that was typed in a shell or chat. Raise UsageError if it has none."""
        value: Any = text
        if self.type is bool or self.booleans is not None:
            value = _TRUTH.get(text.lower(), text)
        elif self.type in (int, float):
            with suppress(ValueError):  # ``converted`` then reports the text
                value = self.type(text)
        return self.converted(value, label)


def declare(
    default: Any, help: str = "", check: Callable[[Any], object] = _anything, must: str = "", **more: Any
) -> Any:
    """Return a dataclass field that is a parameter; ``default`` may be a type whose empty value is the default."""
    metadata = {"parameter": Parameter(help, check, must, **more)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def one_of(choices: tuple[Any, ...]) -> Range:
    """Return ``check`` and ``must`` of a parameter with a fixed set of values."""
    return _OneOf(choices), f"be one of {', '.join(map(str, choices))}"


def one_to(most: float) -> Range:
    """Return ``check`` and ``must`` of a number, or of numbers, from 1 to ``most``."""
    return lambda value: all(1 <= each <= most for each in _each(value)), f"be from 1 to {most}"


def from_zero_to(most: float) -> Range:
    """Return ``check`` and ``must`` of a number, or of numbers, from 0 to ``most``."""
    return lambda value: all(0 <= each <= most for each in _each(value)), f"be from 0 to {most}"


def positive(most: float) -> Range:
    """Return ``check`` and ``must`` of a number, or of numbers, above 0 and at most ``most``."""
    return lambda value: all(0 < each <= most for each in _each(value)), f"be above 0 and at most {most:g}"


def between(least: float, most: float) -> Range:
    """Return ``check`` and ``must`` of a number, or of numbers, from ``least`` to ``most``."""
    return lambda value: all(least <= each <= most for each in _each(value)), f"be from {least:g} to {most:g}"


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def parameters_of(cls: type) -> dict[str, Parameter]:
    """Return the parameters that a dataclass declares, by name, in the order of its fields."""
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
