"""Slash commands for the model, sampling and display."""

from typing import Any

from mllama_cli.chat.commands.command import Command, require
from mllama_cli.chat.shell import Shell
from mllama_cli.core.errors import UsageError
from mllama_cli.core.sampling import SETTABLE, parameter_name
from mllama_cli.core.settings import THEMES
from mllama_cli.core.text import suggest


def _system(shell: Shell, argument: str) -> None:
    shell.dialogue.system = argument
    shell.terminal.note("System message set." if argument else "System message removed.")


def _set(shell: Shell, argument: str) -> None:
    what, _, rest = argument.partition(" ")
    rest = rest.strip()
    if what == "parameter":
        name, _, value = rest.partition(" ")
        _set_parameter(shell, name, value.strip())
    elif what == "system":
        _system(shell, rest.strip("\"'"))
    elif what in ("verbose", "quiet"):
        shell.display.verbose = what == "verbose"
        shell.terminal.note(f"Statistics after each answer: {'yes' if shell.display.verbose else 'no'}.")
    elif what in ("preview", "nopreview"):
        shell.display.preview = what == "preview"
        shell.terminal.note(f"Previews: {'yes' if shell.display.preview else 'no'}.")
    elif what == "theme" and rest in THEMES:
        shell.display.theme = rest
        shell.terminal.note(f"Theme: {rest}.")
    else:
        raise UsageError(
            f"/set does not know {argument!r}" if argument else "/set needs a setting",
            "/set parameter NAME VALUE, /set system TEXT, verbose, quiet, preview, nopreview, "
            f"theme {'|'.join(THEMES)}",
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
    text, vision = chat.engine.config.text_config, chat.engine.config.vision_config
    sampling = chat.sampling
    questions = sum(message.role == "user" for message in chat.conversation)
    images = len(chat.conversation.images)
    slower = f" (PyTorch fallback: {chat.engine.fallback_reason})" if chat.engine.fallback_reason else ""
    rows = [
        ("model", f"{chat.engine.name} ({chat.engine.path})"),
        ("dtype", f"{str(chat.engine.dtype).removeprefix('torch.')} on {chat.engine.device}{slower}"),
        ("layers", f"{text.num_hidden_layers}, hidden size {text.hidden_size}"),
        ("input", "images and text" if vision else "text only"),
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


def _model(shell: Shell, argument: str) -> None:
    name = require(argument, "model", "a name or a folder")
    engine = shell.load_engine(name)
    shell.dialogue.switch(engine)
    shell.dialogue.sampling = shell.default_sampling(engine)
    if shell.dialogue.conversation.images and not engine.has_vision:
        shell.terminal.note("This model is text-only: it cannot answer while there are images in the conversation.")
    shell.terminal.note(f"Now talking to {engine.name}.")


SETTINGS_COMMANDS = (
    Command(("system",), "TEXT", "text", "Set the system message, or remove it if empty.", _system),
    Command(("set",), "parameter NAME VALUE | verbose | ...", "parameter", "Change sampling and display.", _set),
    Command(("show",), "", "none", "Show the model, the parameters and context usage.", _show),
    Command(("model",), "NAME", "model", "Continue with another model.", _model),
)
