"""Commands whose help is plain text in two columns, and commands that are imported only when they are called."""

import importlib
import re
from collections.abc import Callable
from typing import Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup


class _QuickValue:
    """Converts a parameter's value as Typer does, which imports pydantic (a tenth of a second) even for no value.

    What is not plainly valid goes to Typer, and so do types other than str, int and float and lists of these.
    """

    def __init__(self, parameter: Any) -> None:
        self._parameter = parameter
        self._typers_own = parameter.process_value

    def __call__(self, ctx: Any, value: Any) -> Any:
        parameter = self._parameter
        is_list = parameter.multiple or parameter.nargs == -1
        if value is None and not parameter.required:
            value = () if is_list else None
        else:
            try:
                value = self._converted(value, is_list=is_list)
            except ValueError:
                return self._typers_own(ctx, value)
        return value if parameter.callback is None else parameter.callback(ctx, parameter, value)

    def _converted(self, value: Any, *, is_list: bool) -> Any:
        about = getattr(self._parameter, "type_descriptor", None)  # Typer has it since 0.28
        if about is None or about.is_choice or about.parameter_info.parser is not None:
            raise ValueError
        kind, info = about.annotation, about.parameter_info
        if is_list and not about.is_list:
            raise ValueError
        values = value if is_list and isinstance(value, list | tuple) else [value]
        found = [
            _plain_value(each, get_args(kind)[0] if about.is_list else kind, info.min, info.max) for each in values
        ]
        return found if is_list else found[0]


def _plain_value(text: Any, kind: Any, least: float | None, most: float | None) -> Any:
    """Return a word of the command line as ``kind``. Raise ValueError if it is not plainly one, or out of range."""
    if kind in (str, bool) and type(text) is kind:
        return text
    if kind not in (int, float) or type(text) not in (str, int, float) or not _NUMBER[kind].fullmatch(str(text)):
        raise ValueError
    number = kind(text)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError
    return number


_NUMBER = {int: re.compile("-?[0-9]{1,18}"), float: re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")}


class _PlainHelp:
    """Overrides of both kinds of command: Typer's own renderer would box and annotate the help."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in params:
            if not isinstance(parameter.process_value, _QuickValue):
                parameter.process_value = _QuickValue(parameter)
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage line's words: a required argument bare, an optional one in brackets."""
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece.translate({ord("{"): None, ord("}"): None}) for piece in pieces]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)  # type: ignore[attr-defined]
        self.format_help_text(ctx, formatter)  # type: ignore[attr-defined]
        for title, rows in self.help_sections(ctx).items():
            with formatter.section(title):
                formatter.write_dl(rows)
        self.format_epilog(ctx, formatter)  # type: ignore[attr-defined]

    def help_sections(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Return the rows of each section: commands, arguments, then options by panel, --help among the last."""
        sections = _command_rows(getattr(self, "commands", {}))
        for parameter in self.get_params(ctx):
            if (row := parameter.get_help_record(ctx)) is None:
                continue
            kind, name = "Options", row[0]
            if parameter.param_type_name == "argument":
                kind, name = "Arguments", parameter.metavar or parameter.name.upper()
            elif parameter.name == "help" and "Output" in sections:
                kind = "Output"
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append((name, _plain(row[1])))
        return sections


def _plain(help_text: str) -> str:
    """Return a help text with click's note of the default as we write it, and without its other notes.

    >>> _plain("Caption file extension.  [default: .txt]"), _plain("Only the N newest.  [x>=1]")
    ('Caption file extension (default: .txt).', 'Only the N newest.')
    """
    text, _, notes = help_text.partition("  [")
    default = re.match(r"default: (.*?)(;.*)?\]$", notes)
    return f"{text.removesuffix('.')} (default: {default[1]})." if default else text


def _command_rows(commands: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return names and first sentences by section; a hidden command is named with the shown one that does the same."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for name, command in commands.items():
        if not command.hidden:
            same = (other for other, each in commands.items() if each.hidden and _does(each) == _does(command))
            row = ", ".join([name, *same]), command.get_short_help_str(limit=200)
            sections.setdefault(getattr(command, "section", "Commands"), []).append(row)
    return sections


def _does(command: Any) -> Any:
    if isinstance(command, LazyCommand):
        return command.target
    return getattr(command.callback, "__wrapped__", command.callback)


class Command(_PlainHelp, TyperCommand):
    """A command."""


class Group(_PlainHelp, TyperGroup):
    """Several commands under one name."""


class LazyCommand(Command):
    """A command's name and help; ``load`` imports the command itself.

    Args:
        target: module in this package and name in it, "chat:chat", of a function or of an app of subcommands.
        section: the title under which `mllama --help` lists it.
    """

    def __init__(self, name: str, target: str, help_text: str, *, section: str, hidden: bool = False) -> None:
        super().__init__(name, help=help_text, hidden=hidden)
        self.target, self.section = target, section

    def load(self) -> Any:
        """Import the command and return it."""
        module, _, name = self.target.partition(":")
        found = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        app = found if isinstance(found, typer.Typer) else Commands()
        if app is not found:
            app.command(self.name)(found)
        command = typer.main.get_command(app)
        command.name, command.hidden = self.name, self.hidden
        return command


class Commands(typer.Typer):
    """A Typer app of such commands."""

    def __init__(self, *, cls: type[TyperGroup] = Group, **settings: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=True, rich_markup_mode=None, add_completion=False, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        return super().command(name, **{"cls": Command, **settings})
