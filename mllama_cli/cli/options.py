"""Options that several commands share, as Annotated types."""

from typing import Annotated

import click
import typer

from mllama_cli.cli.app import DEBUG


def _remember_debug(ctx: click.Context, value: bool) -> bool:
    ctx.meta[DEBUG] = value
    return value


Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the whole traceback of an error.", callback=_remember_debug, rich_help_panel="Output"),
]
