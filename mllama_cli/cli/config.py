"""`mllama config`: show and change the config file."""

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.commands import Commands
from mllama_cli.cli.common import config_path, load_settings, print_json
from mllama_cli.cli.options import MODEL_VARIABLE, AsJson, Debug

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

    from mllama_cli.core.settings import Settings

Key = Annotated[
    str,
    typer.Argument(metavar="KEY", help="A setting (see `mllama config show`).", autocompletion=complete.setting_names),
]

config = Commands(help="Show and change defaults: model, sampling, display.")


@config.command()
def path(debug: Debug = False) -> None:
    """Print the path of the config file, which may not exist."""
    from mllama_cli.terminal.console import Terminal

    Terminal().result(f"{config_path()}\n")


@config.command()
def show(
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show every setting, its value, and where it comes from."""
    from mllama_cli.core.settings import KEYS
    from mllama_cli.terminal.console import Terminal
    from mllama_cli.terminal.tables import print_table

    terminal = Terminal()
    settings = load_settings()
    found = {name: _effective(name, settings) for name in KEYS}
    if as_json:
        record = {name: {"value": value, "from": source} for name, (value, source) in found.items()}
        print_json(terminal, record)
        return
    rows = [
        (name, _default_of(name) if value is None else _as_text(value), source, _meaning(name))
        for name, (value, source) in found.items()
    ]
    # The file is named once, as its path would take the room of the rest.
    file = str(config_path())
    short = [(name, value, "config file" if source == file else source, help_) for name, value, source, help_ in rows]
    print_table(
        terminal,
        ("SETTING", "VALUE", "FROM", "MEANING"),
        short if terminal.stdout_is_tty else rows,
        wrapped=("VALUE", "MEANING"),
    )
    if terminal.stdout_is_tty and any(source == file for _, _, source, _ in rows):
        terminal.out.print(f"config file: {file}", soft_wrap=True)


@config.command()
def get(key: Key, debug: Debug = False) -> None:
    """Print a setting's value; if it is not set, exit with code 1."""
    from mllama_cli.core.settings import find_key
    from mllama_cli.terminal.console import Terminal

    find_key(key, "config")
    value, _ = _effective(key, load_settings())
    if value is None:
        raise typer.Exit(1)
    Terminal().result(_as_text(value) + "\n")


@config.command("set", context_settings={"ignore_unknown_options": True})  # -1 is a value
def set_(
    key: Key,
    value: Annotated[
        list[str],
        typer.Argument(
            metavar="VALUE", help="The new value (several for stop).", autocompletion=complete.setting_values
        ),
    ],
    debug: Debug = False,
) -> None:
    """Change a setting in the config file; comments and order are preserved."""
    from mllama_cli.core.errors import UsageError
    from mllama_cli.core.settings import find_key

    parameter, label = find_key(key, "config"), f"config: {key}"
    if parameter.repeated:
        new: Any = [text for part in value for text in parameter.parsed(part, label)]
    elif len(value) > 1 and key != "system":
        raise UsageError(f"{key} takes one value, not {len(value)}", "Quote a value with spaces in it.")
    else:
        new = parameter.parsed(" ".join(value), label)
    document = _document()
    document[key] = new
    _write(document)


@config.command()
def unset(key: Key, debug: Debug = False) -> None:
    """Remove a setting from the config file."""
    from mllama_cli.core.settings import find_key

    find_key(key, "config")
    document = _document()
    if key in document:
        del document[key]
        _write(document)


def _effective(name: str, settings: "Settings") -> tuple[Any, str]:
    """Return a setting's value and where it comes from."""
    if name == "model" and os.environ.get(MODEL_VARIABLE):
        return os.environ[MODEL_VARIABLE], MODEL_VARIABLE
    value = settings.get(name)
    return (None, "default") if value is None else (value, str(config_path()))


def _meaning(name: str) -> str:
    """Return what a setting does, and its choices if there are few."""
    from mllama_cli.core.settings import KEYS

    choices = KEYS[name].choices
    return f"{KEYS[name].help}: {', '.join(choices)}" if choices else KEYS[name].help


def _default_of(name: str) -> str:
    """Return what counts where a setting is not set, in parentheses, as the file does not set it."""
    known = {"device": "auto", "dtype": "auto", "theme": "auto", "preview": "true", "verbose": "false", "log": "all"}
    if name in known:
        return f"({known[name]})"
    from mllama_cli.core.config import GenerationConfig
    from mllama_cli.core.sampling import SETTABLE, Sampling

    if name not in SETTABLE:
        return ""
    if hasattr(GenerationConfig, name):
        return "(the model's)"
    return f"({getattr(Sampling(), name) or 'none'})"


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _document() -> "TOMLDocument":
    import tomlkit

    from mllama_cli.system.files import is_file
    from mllama_cli.system.text_file import read_text

    load_settings()  # raises for an invalid file instead of overwriting it
    file = config_path()
    return tomlkit.parse(read_text(file) if is_file(file) else "")


def _write(document: "TOMLDocument") -> None:
    """Write the file atomically, readable only by its owner: a system prompt may be private."""
    import tomlkit

    from mllama_cli.core.errors import MllamaError
    from mllama_cli.system.files import resolved
    from mllama_cli.system.safe_files import replacing

    file = resolved(config_path())  # writes through a link, as dotfiles often are
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(str(file), mode=0o600) as out:
            out.write(tomlkit.dumps(document).encode())
    except OSError as error:
        raise MllamaError(
            f"{file} cannot be written: {error.strerror or error}", "MLLAMA_CONFIG names another file."
        ) from error
