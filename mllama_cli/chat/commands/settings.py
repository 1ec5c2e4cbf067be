"""Slash commands for the model, sampling and display."""

from typing import Any

from mllama_cli.chat.commands.command import Command, switched
from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import UsageError
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import SETTABLE, parameter_name
from mllama_cli.core.settings import THEMES
from mllama_cli.core.text import as_number, suggest
from mllama_cli.hub.catalog import ModelEntry, built_in, installed
from mllama_cli.system.files import is_folder

SET_USAGE = (
    "/set parameter NAME VALUE, /set system TEXT, /set verbose on|off, /set preview on|off, "
    f"/set format json|none|SCHEMA, /set theme {'|'.join(THEMES)}"
)


def _system(shell: Shell, argument: str) -> None:
    if not argument:
        system = shell.dialogue.system
        shell.terminal.note(
            f"System message: {system}" if system else "There is no system message. /system TEXT sets one."
        )
        return
    shell.dialogue.system = "" if argument.lower() == "none" else argument
    shell.terminal.note("System message set." if shell.dialogue.system else "System message removed.")


def _schema(shell: Shell, argument: str) -> None:
    from mllama_cli.processing.schema_text import read_schema

    if not argument:
        grammar = shell.dialogue.sampling.grammar
        shell.terminal.note(
            f"Answers are held to: {grammar.source}"
            if grammar
            else "Answers are free. /schema SCHEMA holds them to one."
        )
        return
    word = argument.lower()
    grammar = None if word == "none" else Grammar.json_object() if word == "json" else read_schema(argument)
    shell.dialogue.set_sampling(grammar=grammar)
    fields = f" with {', '.join(grammar.properties)}" if grammar is not None and grammar.properties else ""
    shell.terminal.note("Answers are free again." if grammar is None else f"Answers are JSON{fields} from now on.")


def _set(shell: Shell, argument: str) -> None:
    what, _, rest = argument.partition(" ")
    rest = rest.strip()
    if what == "parameter":
        name, _, value = rest.partition(" ")
        _set_parameter(shell, name, value.strip())
    elif what == "format" or argument == "noformat":
        _schema(shell, rest if what == "format" else "none")
    elif what == "system":
        _system(shell, rest.strip("\"'"))
    elif what == "verbose" or argument == "quiet":
        shell.display.verbose = what == "verbose" and switched(rest, "set verbose")
        shell.terminal.note(f"Statistics after each answer: {'yes' if shell.display.verbose else 'no'}.")
    elif what == "preview" or argument == "nopreview":
        shell.display.preview = what == "preview" and switched(rest, "set preview")
        shell.terminal.note(f"Previews: {'yes' if shell.display.preview else 'no'}.")
    elif what == "theme" and rest in THEMES:
        shell.display.theme = rest
        shell.terminal.note(f"Theme: {rest}.")
    else:
        raise UsageError(
            f"/set does not know {argument!r}" if argument else "/set needs a setting",
            SET_USAGE,
        )


def _set_parameter(shell: Shell, name: str, value: str) -> None:
    name = parameter_name(name)
    if name == "num_ctx":
        raise UsageError(f"The context size is the model's: {shell.dialogue.context} tokens", "")
    if name not in SETTABLE:
        raise UsageError(
            f"There is no parameter {name!r}", f"{suggest(name, SETTABLE)}Parameters: {', '.join(SETTABLE)}."
        )
    if not value:
        now = getattr(shell.dialogue.sampling, name)
        raise UsageError(f"{name} needs a value", f"It is {now} now ({SETTABLE[name].help}).")
    shell.dialogue.set_sampling(**{name: _value(shell, name, value)})
    shell.terminal.note(f"{name} = {getattr(shell.dialogue.sampling, name)}")


def _value(shell: Shell, name: str, value: str) -> Any:
    if name == "seed" and value.lower() in ("none", "random", "-1"):
        return None
    if SETTABLE[name].repeated:
        text = value.strip("\"'").replace("\\n", "\n").replace("\\t", "\t")
        return (*getattr(shell.dialogue.sampling, name), *SETTABLE[name].parsed(text, name))
    return SETTABLE[name].parsed(value, name)


def _show(shell: Shell, argument: str) -> None:
    from rich.table import Table

    chat = shell.dialogue
    about = chat.engine.about
    sampling = chat.sampling
    questions = sum(message.role == "user" for message in chat.conversation)
    images = len(chat.conversation.images)
    slower = f" (PyTorch fallback: {chat.engine.fallback_reason})" if chat.engine.fallback_reason else ""
    rows = [
        ("model", f"{about.name} ({about.path})"),
        ("dtype", f"{about.dtype} on {about.device}{slower}"),
        ("layers", f"{about.layers}, hidden size {about.hidden_size}"),
        ("input", "images and text" if about.has_vision else "text only"),
        ("context", f"{chat.context_used} of {chat.context} tokens used"),
        ("conversation", f"{questions} question{'s' * (questions != 1)}, {images} image{'s' * (images != 1)}"),
        ("saved as", shell.autosave.label),
        ("system", chat.system or "none"),
        *((name, str(getattr(sampling, name))) for name in SETTABLE),
        ("verbose", "yes" if shell.display.verbose else "no"),
        ("preview", "yes" if shell.display.preview else "no"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    shell.terminal.err.print(table)


def _models() -> list[ModelEntry]:
    """Return the models that a number after /model chooses from, newest first."""
    return [*sorted(installed(), key=lambda entry: entry.modified, reverse=True), built_in()]


def _list_models(shell: Shell) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for number, entry in enumerate(_models(), 1):
        here = entry.name == shell.dialogue.engine.about.name
        table.add_row(f"{number}.", entry.name, "now" if here else f"{entry.modified:%Y-%m-%d}")
    shell.terminal.err.print(table)
    shell.terminal.note("/model NUMBER or NAME continues with another one.")


def _model(shell: Shell, argument: str) -> None:
    if not argument:
        _list_models(shell)
        return
    name = argument
    number = as_number(name)
    if number is not None and not is_folder(name) and 1 <= number <= len(models := _models()):
        name = models[number - 1].name
    engine = shell.load_engine(name)
    shell.dialogue.switch(engine)
    shell.dialogue.sampling = shell.default_sampling(engine)
    if shell.dialogue.conversation.images and not engine.about.has_vision:
        shell.terminal.note("This model is text-only: it cannot answer while there are images in the conversation.")
    shell.terminal.note(f"Now talking to {engine.about.name}.")


SETTINGS_COMMANDS = (
    Command(("model",), "[NAME]", "model", "Continue with another model; alone, list them.", _model),
    Command(("system",), "[TEXT|none]", "text", "Set or remove the system message; alone, show it.", _system),
    Command(
        ("schema",),
        "[SCHEMA|json|none]",
        "text",
        "Hold answers to a JSON schema: a file, JSON, or 'name str, total float'; alone, show it.",
        _schema,
    ),
    Command(("set",), "NAME VALUE", "parameter", f"Change sampling and display: {SET_USAGE}", _set),
    Command(("show",), "", "none", "Show the model, the parameters and context usage.", _show),
)
