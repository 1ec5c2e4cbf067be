"""Find the images that the paths and lists given to `mllama caption` name."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mllama_cli.captioning.listing import Listing, find_images, shard_of
from mllama_cli.cli.caption_request import CaptionInput
from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import as_number, shown
from mllama_cli.processing.documents import split_source
from mllama_cli.system.files import expanded, is_file, is_folder
from mllama_cli.system.text_file import open_file, read_list

_LIST_HINT = "Pipe one in: find . -name '*.jpg' | mllama caption -"


@dataclass(frozen=True)
class FoundInputs:
    """The images, ``roots`` that identify the inputs, and whether a single file was named."""

    listing: Listing
    roots: tuple[str, ...]
    single_file: bool


def find_inputs(inputs: CaptionInput) -> FoundInputs:
    """List the images. Raise UsageError or ImageNotFoundError."""
    paths = inputs.paths or []
    part = shard_part(inputs.shard)
    listed, list_digest = read_lists(paths, inputs.files_from, inputs.null)
    named = [path for path in paths if path != "-"]
    _require_pictures(named)
    listing = find_images(named, listed=listed, recursive=inputs.recursive, pattern=inputs.glob)
    if part is not None:
        first = part[0] == 1
        listing = Listing(
            shard_of(listing.entries, *part),
            listing.unreadable if first else [],
            listing.left_out if first else [],
            listing.documents if first else [],
        )
    return FoundInputs(
        listing,
        roots=(*(os.path.realpath(expanded(path)) for path in named), *list_digest, str(part)),
        single_file=len(named) == 1
        and not listed
        and len(listing.entries) == 1
        and is_file(expanded(split_source(named[0])[0])),
    )


def _require_pictures(paths: Sequence[str]) -> None:
    """Raise UsageError if shards are named."""
    from mllama_cli.captioning.shards.paths import looks_like_shards

    shard = next((path for path in paths if looks_like_shards(path) and not is_folder(expanded(path))), None)
    if shard is not None:
        raise UsageError(f"{shard} holds many pictures", "Say where their captions go: --to DIR.")


def read_lists(paths: Sequence[str], files_from: str | None, null: bool) -> tuple[list[str], tuple[str, ...]]:
    """Return the paths in the list and the list's digest, both empty without a list."""
    source = "-" if "-" in paths else files_from
    if files_from is not None and "-" in paths and files_from != "-":
        raise UsageError("- and --files-from both name a list", "Leave one of them out.")
    if source is None:
        if not paths:
            raise UsageError("There is nothing to caption", "Name a folder or a picture: mllama caption photos/")
        if null:
            raise UsageError("-0 is for a list of paths", "Add - (a list on stdin) or --files-from FILE.")
        return [], ()
    if source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("The list of paths should come from stdin, but stdin is the terminal", _LIST_HINT)
        listed = list(read_list(sys.stdin.buffer, "stdin", nul=null))
    else:
        with open_file(expanded(source)) as file:
            listed = list(read_list(file, source, nul=null))
    if not listed and paths in ([], ["-"]):
        raise UsageError("The list of paths is empty", _LIST_HINT)
    digest = hashlib.sha256()
    for path in listed:
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
    return listed, (digest.hexdigest(),)


def shard_part(shard: str | None) -> tuple[int, int] | None:
    """Return the numbers of --shard I/N. Raise UsageError."""
    if shard is None:
        return None
    index, count = (as_number(part) for part in shard.partition("/")[::2])
    if index is not None and count is not None and 1 <= index <= count:
        return index, count
    raise UsageError(f"--shard must be I/N with I from 1 to N, not {shown(shard)}", "Example: --shard 1/4")
