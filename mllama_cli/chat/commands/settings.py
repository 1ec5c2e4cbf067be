"""Commands about the model and how it answers."""

from typing import TYPE_CHECKING, Any

from mllama_cli.chat.commands.command import Action, needed
from mllama_cli.core.errors import UsageError
from mllama_cli.core.sampling import SETTABLE
from mllama_cli.core.text import suggest

if TYPE_CHECKING:
    from mllama_cli.chat.repl import Repl

ALIASES = {alias: name for name, parameter in SETTABLE.items() for alias in parameter.aliases}


def _system(repl: "Repl", argument: str) -> None:
    repl.chat.system = argument
    repl.terminal.note(
        "From now on the system message says so." if argument else "There is no system message any more."
    )


def _set(repl: "Repl", argument: str) -> None:
    what, _, rest = argument.partition(" ")
    rest = rest.strip()
    if what == "parameter":
        name, _, value = rest.partition(" ")
        _set_parameter(repl, name, value.strip())
    elif what == "system":
        _system(repl, rest.strip("\"'"))
    elif what in ("verbose", "quiet"):
        repl.look.verbose = what == "verbose"
        repl.terminal.note(f"Statistics after each answer: {'yes' if repl.look.verbose else 'no'}.")
    elif what in ("preview", "nopreview"):
        repl.look.preview = what == "preview"
        repl.terminal.note(f"Previews: {'yes' if repl.look.preview else 'no'}.")
    elif what == "theme" and rest in ("dark", "light", "none"):
        repl.look.theme = rest
        repl.terminal.note(f"Theme: {rest}.")
    else:
        raise UsageError(
            f"/set does not know {argument!r}" if argument else "/set needs to know what",
            "/set parameter NAME VALUE, /set system TEXT, verbose, quiet, preview, nopreview, theme dark|light|none",
        )


def _set_parameter(repl: "Repl", name: str, value: str) -> None:
    name = ALIASES.get(name.replace("-", "_"), name.replace("-", "_"))
    if name == "num_ctx":
        raise UsageError(
            f"The context is the model's own: {repl.chat.context} tokens, its memory grows as it is needed", ""
        )
    if name not in SETTABLE:
        raise UsageError(
            f"There is no parameter {name!r}", f"{suggest(name, SETTABLE)}Parameters: {', '.join(SETTABLE)}."
        )
    if not value:
        now = getattr(repl.chat.sampling, name)
        raise UsageError(f"{name} needs a value", f"It is {now} now and means: {SETTABLE[name].help}.")
    repl.chat.set_sampling(**{name: _value(repl, name, value)})
    repl.terminal.note(f"{name} = {getattr(repl.chat.sampling, name)}")


def _value(repl: "Repl", name: str, value: str) -> Any:
    if name == "seed" and value.lower() in ("none", "random", "-1"):
        return None
    if SETTABLE[name].repeated:
        text = value.strip("\"'").replace("\\n", "\n").replace("\\t", "\t")
        return (*getattr(repl.chat.sampling, name), *SETTABLE[name].parsed(text, name))
    return SETTABLE[name].parsed(value, name)


def _show(repl: "Repl", argument: str) -> None:
    from rich.table import Table

    chat = repl.chat
    text, vision = chat.engine.config.text_config, chat.engine.config.vision_config
    sampling = chat.sampling
    asked = sum(message.role == "user" for message in chat.conversation)
    shown = len(chat.conversation.images)
    slower = f" (plain torch: {chat.engine.slower_because})" if chat.engine.slower_because else ""
    rows = [
        ("model", f"{chat.engine.name} ({chat.engine.path})"),
        ("computes in", f"{str(chat.engine.dtype).removeprefix('torch.')} on {chat.engine.device}{slower}"),
        ("layers", f"{text.num_hidden_layers}, hidden size {text.hidden_size}"),
        ("sees", "pictures and text" if vision else "text only"),
        ("context", f"{chat.context_used} of {chat.context} tokens used"),
        ("conversation", f"{asked} question{'s' * (asked != 1)}, {shown} picture{'s' * (shown != 1)}"),
        ("saved as", repl.saving.label),
        ("system", chat.system or "none"),
        *((name, str(getattr(sampling, name))) for name in SETTABLE),
        ("verbose", "yes" if repl.look.verbose else "no"),
        ("preview", "yes" if repl.look.preview else "no"),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    repl.terminal.err.print(table, markup=False)


def _model(repl: "Repl", argument: str) -> None:
    name = needed(argument, "model", "a name or a folder")
    engine = repl.load_engine(name)
    repl.chat.switch(engine)
    repl.chat.sampling = repl.default_sampling(engine)
    if repl.chat.conversation.images and not engine.can_see:
        repl.terminal.note("This model is text-only: it cannot answer while pictures stand in the conversation.")
    repl.terminal.note(f"Now talking to {engine.name}.")


ACTIONS = (
    Action(("system",), "TEXT", "text", "Say how the model should behave; empty for no system message.", _system),
    Action(("set",), "parameter NAME VALUE | verbose | ...", "parameter", "Change how it answers.", _set),
    Action(("show",), "", "none", "Model, parameters, and how much of the context is used.", _show),
    Action(("model",), "NAME", "model", "Go on with another model.", _model),
)
