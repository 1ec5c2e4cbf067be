"""The user's config file: what it may hold, and what it says."""

import difflib
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mllama_cli.core.errors import UsageError

THEMES = ("dark", "light", "none")
DEVICES = "auto, cpu, cuda or cuda:N"
DTYPES = ("auto", "bfloat16", "float16", "float32")


def _described(help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=None, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What the config file sets; None where it says nothing. Ranges of sampling parameters are the sampler's affair."""

    model: str | None = _described("the model that is used where none is named")
    device: str | None = _described(DEVICES)
    dtype: str | None = _described("number format", DTYPES)
    system: str | None = _described("system prompt of every chat")
    temperature: float | None = _described("0 is greedy")
    top_p: float | None = _described("nucleus sampling")
    top_k: int | None = _described("0 means all tokens")
    min_p: float | None = _described("share of the likeliest token's probability")
    repetition_penalty: float | None = _described("above 1 makes repeating less likely")
    max_tokens: int | None = _described("longest answer in tokens")
    seed: int | None = _described("makes sampled answers repeatable")
    stop: tuple[str, ...] | None = _described("texts that end an answer")
    theme: str | None = _described("colours of the interactive chat", THEMES)
    preview: bool | None = _described("small pictures in the interactive chat")
    verbose: bool | None = _described("statistics after each answer")
    log: bool | None = _described("keep interactive chats")

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that are set."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "stop")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


KEYS = {each.name: each for each in fields(Settings)}
_TYPES = {
    name: next(t for t in get_args(hint) if t is not type(None)) for name, hint in get_type_hints(Settings).items()
}
_TRUTH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_WORDS = {str: "a text in quotes", float: "a number", int: "a whole number", bool: "true or false"}


def read_settings(path: Path) -> Settings:
    """The settings in a config file; none where it does not exist.

    Raises UsageError, with the file and the key, for a file that is no TOML, an unknown key or a wrong value.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check who owns the file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "Example line: temperature = 0.5") from error
    return Settings(**{name: checked(name, value, str(path)) for name, value in data.items()})


def checked(name: str, value: Any, where: str) -> Any:
    """``value`` as the setting ``name`` holds it. Raises UsageError; ``where`` begins its message."""
    require_key(name, where)
    wanted = _TYPES[name]
    if name == "stop":
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text for text in value):
            raise UsageError(f"{where}: stop must be a list of texts", 'Example: stop = ["END"]')
        return tuple(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted:
        raise UsageError(f"{where}: {name} must be {_WORDS[wanted]}, not {value!r}", f"It means: {help_of(name)}.")
    choices = KEYS[name].metadata["choices"]
    if choices and value not in choices:
        raise UsageError(f"{where}: {name} cannot be {value!r}", f"It is one of {', '.join(choices)}.")
    return value


def parsed(name: str, text: str) -> Any:
    """``text``, as a person types it in a shell, as the value of a setting. Raises UsageError."""
    require_key(name, "config")
    wanted = _TYPES[name]
    value: Any = text
    if wanted is bool:
        value = _TRUTH.get(text.lower(), text)
    elif wanted in (int, float):
        try:
            value = wanted(text)
        except ValueError:
            value = text
    elif name == "stop":
        value = [text]
    return checked(name, value, "config")


def require_key(name: str, where: str) -> None:
    """Raise UsageError, with the nearest name, for a setting that does not exist."""
    if name not in KEYS:
        near = difflib.get_close_matches(name, KEYS, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"{where}: there is no setting {name!r}", f"{meant}Settings: {', '.join(KEYS)}.")


def help_of(name: str) -> str:
    text: str = KEYS[name].metadata["help"]
    return text
