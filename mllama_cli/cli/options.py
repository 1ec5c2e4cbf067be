"""Options that several commands share, as Annotated types."""

from typing import Annotated

import typer

from mllama_cli.cli import complete

DEBUG = "mllama.debug"
"""Key in a command's context: whether --debug was given."""

SAMPLING = "Sampling (defaults: the checkpoint's own)"
OUTPUT = "Output"
COMPUTE = "Model and device"


def _remember_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[DEBUG] = value
    return value


Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show the whole traceback of an error.", callback=_remember_debug, rich_help_panel=OUTPUT
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        envvar="MLLAMA_MODEL",
        help="A folder, the name of an installed model, an alias (11b, 90b, ...) or a hub id.",
        autocompletion=complete.models,
        rich_help_panel=COMPUTE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto (the default), cpu, cuda or cuda:N.",
        metavar="DEVICE",
        autocompletion=complete.devices,
        rich_help_panel=COMPUTE,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="auto (the default), bfloat16, float16 or float32.",
        metavar="DTYPE",
        autocompletion=complete.dtypes,
        rich_help_panel=COMPUTE,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="int4 or int8: make the model small while it loads. `mllama quantize` does it once for all, and better.",
        metavar="BITS",
        autocompletion=complete.quantizations,
        rich_help_panel=COMPUTE,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="On a CPU, never round activations to 8 bits: slower, a little nearer.", rich_help_panel=COMPUTE
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "--temp", help="0 is greedy: always the likeliest token.", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Keep the likeliest tokens that together reach this probability.", rich_help_panel=SAMPLING),
]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens.", rich_help_panel=SAMPLING)]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens below this share of the likeliest one's probability.", rich_help_panel=SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 makes repeating a token less likely.", rich_help_panel=SAMPLING)
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Longest answer, in tokens (default: 2048).", rich_help_panel=SAMPLING)
]
Seed = Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.", rich_help_panel=SAMPLING)]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End the answer before this text (repeatable).", metavar="TEXT", rich_help_panel=SAMPLING),
]
