"""The user's config file: its keys and their values."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mllama_cli.core.duration import is_duration
from mllama_cli.core.errors import UsageError
from mllama_cli.core.parameter import Parameter, declare, one_of, parameters_of
from mllama_cli.core.sampling import SETTABLE
from mllama_cli.core.text import suggest

THEMES = ("auto", "dark", "light", "none")
LOG_CHOICES = ("all", "chats", "none")
DTYPE_CHOICES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS = ("int4", "int8")
IMAGE_KV_FORMATS = ("fp8",)
"""Formats to which the keys and values of images may be rounded."""
DEVICE = re.compile(r"auto|cuda(:\d+)?|cuda:all|cpu(,cpu)*|cuda:\d+(,cuda:\d+)*")


@dataclass(frozen=True)
class Settings:
    """The config file's values; None for a key that is not set. ``sampling`` holds the parameters that are set."""

    model: str | None = declare(None, "the model that is used where none is named")
    device: str | None = declare(
        None,
        "where to compute: auto, cpu, cuda, cuda:N, or several such as cuda:0,cuda:1",
        DEVICE.fullmatch,
        "be auto, cpu, cuda, cuda:N, or several such as cuda:0,cuda:1",
    )
    dtype: str | None = declare(None, "number format", *one_of(DTYPE_CHOICES))
    system: str | None = declare(None, "system prompt of every chat")
    sampling: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: str | None = declare(
        None,
        "how long a background engine keeps the model in memory after an answer",
        is_duration,
        "be a time such as 10m",
    )
    theme: str | None = declare(None, "colours of the interactive chat", *one_of(THEMES))
    preview: bool | None = declare(None, "small pictures in the interactive chat")
    verbose: bool | None = declare(None, "statistics after each answer")
    log: str | None = declare(
        None,
        "what is saved (all: single questions on a terminal too)",
        *one_of(LOG_CHOICES),
        booleans=("none", "chats"),
    )

    def get(self, key: str) -> Any:
        """Return the value of a key; None if it is not set."""
        return self.sampling.get(key) if key in SETTABLE else getattr(self, key)


def _keys() -> Iterator[tuple[str, Parameter]]:
    own = parameters_of(Settings)
    for each in fields(Settings):
        yield from SETTABLE.items() if each.name == "sampling" else [(each.name, own[each.name])]


KEYS = dict(_keys())
"""The file's keys, in the order in which they are listed."""


def require_image_kv(name: str | None) -> None:
    """Raise UsageError for an unknown format of the images' keys and values; None leaves them as computed."""
    if name not in (None, *IMAGE_KV_FORMATS):
        raise UsageError(f"Unknown format of image keys and values {name!r}", f"Use {' or '.join(IMAGE_KV_FORMATS)}.")


def require_one_precision(*, exact: bool, fast: bool) -> None:
    """Raise UsageError if activations are to be kept in their precision and rounded too."""
    if exact and fast:
        raise UsageError("--exact and --fast are mutually exclusive", "Leave one of them out.")


def parse_settings(data: Mapping[str, Any], where: str) -> Settings:
    """Return the settings of a config file's table.

    Raises UsageError, with ``where`` and the key, for an unknown key or a wrong value.
    """
    values = {key: find_key(key, where).converted(value, f"{where}: {key}") for key, value in data.items()}
    sampling = {key: values.pop(key) for key in SETTABLE if key in values}
    return Settings(**values, sampling=sampling)


def find_key(key: str, where: str) -> Parameter:
    """Return the parameter of a config file's key. Raise UsageError, starting with ``where``, for an unknown key."""
    if key not in KEYS:
        raise UsageError(f"{where}: there is no setting {key!r}", f"{suggest(key, KEYS)}Settings: {', '.join(KEYS)}.")
    return KEYS[key]
