"""Commands whose help is plain text in two columns: what Typer's own renderer would box and annotate."""

import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class _PlainHelp:
    """Overrides of both kinds of command."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the usage line's words: a required argument bare, an optional one in brackets."""
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece.translate({ord("{"): None, ord("}"): None}) for piece in pieces]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)  # type: ignore[attr-defined]
        self.format_help_text(ctx, formatter)  # type: ignore[attr-defined]
        for title, rows in self._sections(ctx).items():
            with formatter.section(title):
                formatter.write_dl(rows)
        self.format_epilog(ctx, formatter)  # type: ignore[attr-defined]

    def _sections(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """Return the rows of each section: commands, arguments, then options by panel, --help among the last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        if commands := _command_rows(getattr(self, "commands", {})):
            sections["Commands"] = commands
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]
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


def _command_rows(commands: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and first sentences; a hidden command that does the same as a shown one is named beside it."""
    rows = []
    for name, command in commands.items():
        if not command.hidden:
            same = (other for other, each in commands.items() if each.hidden and _does(each) == _does(command))
            rows.append((", ".join([name, *same]), command.get_short_help_str(limit=200)))
    return rows


def _does(command: Any) -> Any:
    return getattr(command.callback, "__wrapped__", command.callback)


class Command(_PlainHelp, TyperCommand):
    """A command."""


class Group(_PlainHelp, TyperGroup):
    """Several commands under one name."""


class Commands(typer.Typer):
    """A Typer app of such commands."""

    def __init__(self, *, cls: type[TyperGroup] = Group, **settings: Any) -> None:
        super().__init__(cls=cls, no_args_is_help=True, rich_markup_mode=None, add_completion=False, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        return super().command(name, **{"cls": Command, **settings})
