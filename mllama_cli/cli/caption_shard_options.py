"""The options of `mllama caption` for shards: tars and parquet files in, one file of captions for each out.

Imported when the program starts, so the checks import what only they need.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from mllama_cli.core.errors import UsageError

shard_option = partial(typer.Option, rich_help_panel="Shards (webdataset tars, parquet)")


@dataclass(frozen=True)
class ShardOptions:
    """How shards are read and shared out, and where their captions go. Only with ``to``."""

    to: Annotated[
        str | None,
        shard_option(
            metavar="DIR",
            help="Caption .tar and .parquet files, and write a file of captions for each into this folder, "
            "also s3://, gs://.",
        ),
    ] = None
    output_format: Annotated[
        str | None,
        shard_option("--format", metavar="NAME", help="parquet (the default), or webdataset: captions with pictures."),
    ] = None
    image_column: Annotated[
        str | None,
        shard_option(metavar="NAME", help="The column (in a tar, the extension) of the pictures, bytes or URLs."),
    ] = None
    key_column: Annotated[str | None, shard_option(metavar="NAME", help="The column that names the pictures.")] = None
    claim: Annotated[
        bool,
        shard_option("--claim", help="Share shards with all workers that run the same command, by leases in DIR."),
    ] = False
    ray: Annotated[
        str | None,
        shard_option(
            metavar="ADDRESS", help="Run on Ray: auto (the cluster that this machine is in), local, or an address."
        ),
    ] = None
    actors: Annotated[
        int | None,
        shard_option(metavar="N", min=1, help="Models at once on Ray (default: one for each GPU of the cluster)."),
    ] = None

    def __post_init__(self) -> None:
        flags = {
            "--format": self.output_format,
            "--image-column": self.image_column,
            "--key-column": self.key_column,
            "--claim": self.claim,
            "--ray": self.ray,
            "--actors": self.actors,
        }
        given = [flag for flag, value in flags.items() if value]
        if given and self.to is None:
            raise UsageError(f"{given[0]} is for shards", "Say where their captions go: --to DIR.")
        if self.output_format is not None:
            from mllama_cli.captioning.shards.outputs import OUTPUT_FORMS

            if self.output_format not in OUTPUT_FORMS:
                raise UsageError(
                    f"--format cannot be {self.output_format!r}", f"It is one of {', '.join(OUTPUT_FORMS)}."
                )
        if self.actors is not None and self.ray is None:
            raise UsageError("--actors is for Ray", "Add --ray auto or --ray local.")
        if self.ray is not None and self.claim:
            raise UsageError("--claim is not for Ray, which shares out the work itself", "Leave it out.")
