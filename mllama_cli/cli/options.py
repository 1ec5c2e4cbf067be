"""Options that several commands share.

A single option is an Annotated type (``Device``). A group of options is a dataclass whose fields are such types
(``ComputeOptions``), or ``SamplingOptions``. A command decorated with ``option_groups`` takes a group as one parameter:

    @option_groups
    def caption(*, paths: ..., compute: ComputeOptions, sampling: SamplingOptions, verbose: ... = False) -> None:

Typer sees the group's options instead of that parameter; the command gets one object, whose constructor checks the
values. Every option of a group has a default.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import DEBUG_KEY
from mllama_cli.cli.ranks import begin_ranks, devices_of, end_with_ranks, launched, meeting
from mllama_cli.core.duration import is_duration, parse_duration
from mllama_cli.core.errors import UsageError
from mllama_cli.core.sampling import SETTABLE, Sampling

if TYPE_CHECKING:
    from mllama_cli.captioning.replicas import Replica
    from mllama_cli.core.settings import Settings
    from mllama_cli.engine.engine import Engine

MODEL_VARIABLE = "MLLAMA_MODEL"
"""Environment variable that takes precedence over the config file's model."""

NO_SERVER_VARIABLE, KEEP_ALIVE_VARIABLE = "MLLAMA_NO_SERVER", "MLLAMA_KEEP_ALIVE"
HOST_VARIABLE, KEY_VARIABLE = "MLLAMA_HOST", "MLLAMA_API_KEY"
"""Environment variables of ``SharingOptions``."""

_METAVARS = {str: "TEXT", int: "N", float: "NUMBER"}

input_option = partial(typer.Option, rich_help_panel="Input")
output_option = partial(typer.Option, rich_help_panel="Output")
compute_option = partial(typer.Option, rich_help_panel="Model and device")
sampling_option = partial(typer.Option, rich_help_panel="Sampling (defaults: the checkpoint's own)")


def _remember_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[DEBUG_KEY] = value
    return value


Debug = Annotated[bool, output_option("--debug", help="Show the traceback of an error.", callback=_remember_debug)]
AsJson = Annotated[bool, output_option("--json", help="Print JSON.")]
Verbose = Annotated[bool, output_option("--verbose", "-u", "--usage", help="Print statistics to stderr.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")]
Model = Annotated[
    str | None,
    compute_option(
        "-m",
        "--model",
        metavar="NAME",
        envvar=MODEL_VARIABLE,
        help="A folder, an installed model, an alias (11b, 90b, ...) or a hub id "
        f"(default: ${MODEL_VARIABLE}, the config file's, or the one used last).",
        autocompletion=complete.models,
    ),
]
Device = Annotated[
    str | None,
    compute_option(
        metavar="DEVICE",
        help="auto (the default), cpu, cuda, cuda:N, or several that share the model: cuda:0,cuda:1 or cuda:all.",
        autocompletion=complete.devices,
    ),
]
Dtype = Annotated[
    str | None,
    compute_option(
        metavar="DTYPE", help="auto (the default), bfloat16, float16 or float32.", autocompletion=complete.dtypes
    ),
]
Quantize = Annotated[
    str | None,
    compute_option(
        metavar="FORMAT",
        help="Quantize to int4 or int8 while loading. `mllama quantize` does it once, and more accurately.",
        autocompletion=complete.quantizations,
    ),
]
Exact = Annotated[
    bool,
    compute_option("--exact", help="On a CPU, never round activations to 8 bits: slower, slightly more accurate."),
]
Fast = Annotated[
    bool,
    compute_option(
        "--fast", help="Encode pictures in float8 where the GPU computes that faster (H100, H200): less accurate."
    ),
]
ImageKV = Annotated[
    str | None,
    compute_option(
        "--image-kv",
        metavar="FORMAT",
        help="Keep the keys and values of pictures in fp8: half the memory, so that more fit at once (default: as "
        "computed, as those of text always are).",
        autocompletion=complete.image_kv_formats,
    ),
]
Adapter = Annotated[
    list[str] | None,
    compute_option(metavar="DIR", help="Merge the LoRA adapter in this folder into the weights (repeatable)."),
]


@dataclass(frozen=True)
class ComputeOptions:
    """The model, its device and its number format. Raise UsageError for a value that cannot be right."""

    model: Model = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    exact: Exact = False
    fast: Fast = False
    adapter: Adapter = None

    def __post_init__(self) -> None:
        from mllama_cli.core.settings import KEYS, QUANTIZATIONS, require_image_kv, require_one_precision

        for name in ("device", "dtype"):
            if (value := getattr(self, name)) is not None:
                KEYS[name].require(value, f"--{name}")
        if self.quantize not in (None, *QUANTIZATIONS):
            raise UsageError(f"Unknown quantization {self.quantize!r}", f"Use {' or '.join(QUANTIZATIONS)}.")
        require_image_kv(self.image_kv)
        require_one_precision(exact=self.exact, fast=self.fast)

    @property
    def image_kv(self) -> str | None:
        """The format of the keys and values of images; an option only where several are answered about at once."""
        return None

    def with_defaults(self, settings: "Settings") -> Self:
        """Return these options, completed from the environment and the config file."""
        return replace(
            self,
            model=self.model or os.environ.get(MODEL_VARIABLE) or settings.model,
            device=devices_of(self.device or settings.device),
            dtype=self.dtype or settings.dtype,
        )

    def open_engine(self, folder: Path, name: str, *, load_soon: bool = True) -> "Engine":
        """Return an engine for the model in a folder, its weights not yet loaded. Imports torch.

        With ``load_soon``, what takes a while starts at once, such as processes for other devices.
        """
        from mllama_cli.system.collection import paused_collection
        from mllama_cli.system.cuda_context import create_context

        device = self.device or "auto"
        create_context(device)
        with paused_collection():
            crew = begin_ranks(device) if load_soon else None
            from mllama_cli.engine.engine import Engine

            engine = Engine(
                folder,
                name,
                device=device,
                dtype=self.dtype or "auto",
                quantize=self.quantize,
                exact=self.exact,
                image_kv=self.image_kv,
                fast=self.fast,
                adapters=adapter_folders(self.adapter),
                meeting=meeting(),
                crew=crew,
                load_soon=load_soon,
            )
        end_with_ranks(engine)
        return engine

    def replicas(self, folder: Path | None, name: str) -> "list[Replica]":
        """Return an engine for each of the devices. Raise UsageError if there are not several."""
        from mllama_cli.captioning.replicas import Replica
        from mllama_cli.engine.device import choose_devices

        devices = choose_devices(self.device or "auto")
        if folder is None or len(devices) < 2:
            raise UsageError("--replicas needs several devices", "Name them, such as --device cuda:0,cuda:1.")
        import torch

        threads = max(1, torch.get_num_threads() // len(devices))
        folders = tuple(adapter_folders(self.adapter))
        form = (self.dtype or "auto", self.quantize, self.exact, self.image_kv, self.fast, folders, threads)
        return [Replica(folder, name, str(device), *form) for device in devices]


@dataclass(frozen=True)
class BatchComputeOptions(ComputeOptions):
    """Those of a command that answers several conversations at once."""

    image_kv: ImageKV = None


def adapter_folders(given: "list[str] | None") -> list[Path]:
    """Return the folders of --adapter."""
    from mllama_cli.system.files import expanded

    return [expanded(each) for each in given or ()]


def _is_set(variable: str) -> bool:
    """Return whether an environment variable says yes."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "no", "off", "false")


@dataclass(frozen=True)
class SharingOptions:
    """Whether an engine that runs already may answer, and how long one stays that is started for this command."""

    no_server: Annotated[
        bool,
        compute_option(
            "--no-server", help="Load the model in this process, even if a running engine holds it ($MLLAMA_NO_SERVER)."
        ),
    ] = False
    keep_alive: Annotated[
        str | None,
        compute_option(
            metavar="TIME",
            help="Leave the model in memory, in the background, for this long after its last answer, such as 10m "
            f"(default: ${KEEP_ALIVE_VARIABLE}, the config file's, or not at all).",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.keep_alive is not None and not is_duration(self.keep_alive):
            raise UsageError(f"--keep-alive must be a time such as 10m, not {self.keep_alive!r}")

    def with_defaults(self, settings: "Settings") -> "SharingOptions":
        """Return these options, completed from the environment and the config file."""
        alone = self.no_server or _is_set(NO_SERVER_VARIABLE) or launched() is not None
        if alone and self.keep_alive is not None:
            raise UsageError("--keep-alive and --no-server are mutually exclusive", "Leave one of them out.")
        given = os.environ.get(KEEP_ALIVE_VARIABLE) or None
        if self.keep_alive is None and given is not None and not is_duration(given):
            raise UsageError(f"{KEEP_ALIVE_VARIABLE} must be a time such as 10m, not {given!r}")
        return SharingOptions(alone, self.keep_alive or given or settings.keep_alive)

    @property
    def seconds(self) -> float:
        """How long a background engine stays after its last use; 0 if none is to be started."""
        return 0.0 if self.no_server or self.keep_alive is None else parse_duration(self.keep_alive)

    @property
    def host(self) -> str:
        """The server on another machine that answers instead of a model here; empty if there is none."""
        return "" if self.no_server else os.environ.get(HOST_VARIABLE, "").strip()


class SamplingOptions(dict[str, Any]):
    """The sampling parameters that were given as flags, for ``Sampling.from_defaults``.

    Raise UsageError for a value that is out of range.
    """

    def __init__(self, **values: Any) -> None:
        given = {name: value for name, value in values.items() if value is not None and value != []}
        super().__init__({name: tuple(value) if SETTABLE[name].repeated else value for name, value in given.items()})
        Sampling(**self)


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each group of options in a command's signature by its members, as Typer expects them."""
    groups: dict[str, tuple[type, list[str]]] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        members = list(_members(parameter.annotation))
        if members:
            groups[parameter.name] = parameter.annotation, [member.name for member in members]
        options += members or [parameter]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        for name, (kind, members) in groups.items():
            values[name] = kind(**{member: values.pop(member) for member in members})
        command(**values)

    keyword_only = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    wrapper.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {option.name: option.annotation for option in options}
    return wrapper


def _members(group: Any) -> Iterator[inspect.Parameter]:
    """Yield the options of a group; nothing for a single option."""
    if group is SamplingOptions:
        for each in SETTABLE.values():
            hint = list[each.type] if each.repeated else each.type  # type: ignore[name-defined]
            option = sampling_option(
                each.flag,
                *each.flags,
                help=f"{each.help[0].upper()}{each.help[1:]}.",
                metavar=_METAVARS[each.type],
            )
            yield _member(each.name, Annotated[hint | None, option], None)
    elif is_dataclass(group):
        for field in fields(group):
            yield _member(field.name, field.type, field.default)


def _member(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
