"""What `mllama caption` was asked, checked before anything heavy is imported."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mllama_cli.captioning.listing import Listing, find_pictures, read_list, shard_of
from mllama_cli.captioning.postprocess import Polish
from mllama_cli.captioning.prompts import DEFAULT, DEFAULT_MAX_TOKENS, MAX_TOKENS, STYLES, PromptTemplate, Style
from mllama_cli.core.caption_events import EXISTING, Existing
from mllama_cli.core.errors import UsageError
from mllama_cli.core.filetypes import IMAGE_SUFFIXES
from mllama_cli.system.folders import expanded


@dataclass(frozen=True)
class CaptionRequest:
    """``single``: exactly one picture was named, and nothing says that its caption is to be kept."""

    listing: Listing
    prompt: PromptTemplate
    polish: Polish
    system: str
    existing: Existing
    separator: str
    extension: str
    output: str | None
    single: bool
    slots: int | None
    max_tokens: int
    roots: tuple[str, ...]

    @classmethod
    def checked(
        cls,
        *,
        paths: Sequence[str],
        files_from: str | None,
        null: bool,
        recursive: bool,
        pattern: str | None,
        shard: str | None,
        prompt: str | None,
        prompt_file: Path | None,
        style: str | None,
        system: str | None,
        prefix: str,
        suffix: str,
        strip: bool,
        existing: str,
        separator: str | None,
        output: str | None,
        sidecar: bool,
        extension: str,
        batch_size: str,
    ) -> "CaptionRequest":
        """Check the options and list the pictures. Raises UsageError or ImageNotFoundError."""
        if existing not in EXISTING:
            raise UsageError(f"--existing cannot be {existing!r}", f"It is one of {', '.join(EXISTING)}.")
        if style is not None and style not in STYLES:
            raise UsageError(f"--style cannot be {style!r}", f"It is one of {', '.join(STYLES)}.")
        if output is not None and sidecar:
            raise UsageError("--output and --sidecar name two places for captions", "Leave one of them out.")
        if output is not None and existing in ("append", "prepend"):
            raise UsageError(
                f"--existing {existing} changes caption files, and --output keeps captions elsewhere",
                "Use --existing skip or overwrite with --output; {existing} in a prompt quotes a caption file.",
            )
        if output == "-" and existing != "skip":
            raise UsageError(f"--existing {existing} has nothing to act on with --output -", "Leave it out.")
        if output is not None and output != "-":
            from mllama_cli.captioning.output_file import format_of

            format_of(output)
        template = _template(prompt, prompt_file, style)
        slots = _slots(batch_size)
        part = _shard(shard)
        listed, roots = _lists(paths, files_from, null)
        named = [path for path in paths if path != "-"]
        listing = find_pictures(named, listed=listed, recursive=recursive, pattern=pattern)
        one = len(named) == 1 and not listed and expanded(named[0]).is_file()
        if part is not None:
            listing = Listing(shard_of(listing.pictures, *part), listing.unreadable if part[0] == 1 else [])
        return cls(
            listing=listing,
            prompt=template,
            polish=Polish(strip=strip, tags=style == "tags", prefix=prefix, suffix=suffix),
            system=system or "",
            existing=existing,
            separator=separator if separator is not None else ", " if style == "tags" else " ",
            extension=_extension(extension),
            output=output,
            single=one and output is None and not sidecar,
            slots=slots,
            max_tokens=MAX_TOKENS.get(style or "", DEFAULT_MAX_TOKENS),
            roots=(*(os.path.realpath(expanded(path)) for path in named), *roots, str(part)),
        )

    def run_key(self, model: str, sampling: Any) -> str:
        """Tells this command from others: what is captioned, by what, how, and where to."""
        told = [*sorted(self.roots), model, repr(sampling), self.prompt.text, repr(self.polish), self.system]
        told += [self.existing, self.separator, self.extension, os.path.realpath(self.output) if self.output else ""]
        return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _template(prompt: str | None, prompt_file: Path | None, style: str | None) -> PromptTemplate:
    given = [name for name, value in (("--prompt", prompt), ("--prompt-file", prompt_file)) if value is not None]
    if len(given) > 1 or (given and style is not None and style != "tags"):
        raise UsageError(f"{' and '.join([*given, '--style'][:2])} both say what is asked", "Leave one of them out.")
    if prompt is not None:
        return PromptTemplate(prompt)
    if prompt_file is not None:
        try:
            return PromptTemplate(prompt_file.expanduser().read_text(encoding="utf-8-sig").strip())
        except UnicodeDecodeError:
            raise UsageError(f"{prompt_file} is not UTF-8 text", "Name a text file.") from None
        except OSError as error:
            raise UsageError(f"{prompt_file} cannot be read: {error.strerror}", "Check the path.") from None
    return PromptTemplate(STYLES[cast(Style, style)] if style else DEFAULT)


def _lists(paths: Sequence[str], files_from: str | None, null: bool) -> tuple[list[str], tuple[str, ...]]:
    """(paths in the list, what tells this list from others)."""
    source = "-" if "-" in paths else files_from
    if files_from is not None and "-" in paths and files_from != "-":
        raise UsageError("- and --files-from both name a list", "Leave one of them out.")
    if source is None:
        if not paths:
            raise UsageError("There is nothing to caption", "Name a folder or a picture: mllama caption photos/")
        if null:
            raise UsageError("-0 is for a list of paths", "Add - (a list on stdin) or --files-from FILE.")
        return [], ()
    try:
        if source == "-":
            if sys.stdin is None or sys.stdin.isatty():
                raise UsageError("The list of paths should come from stdin, but stdin is the terminal", _LIST_HINT)
            data = sys.stdin.buffer.read()
        else:
            data = Path(source).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}", "Check the path.") from None
    listed = read_list(os.fsdecode(data), nul=null)
    if not listed and paths in ([], ["-"]):
        raise UsageError("The list of paths is empty", _LIST_HINT)
    return listed, (hashlib.sha256(data).hexdigest(),)


_LIST_HINT = "Pipe one in: find . -name '*.jpg' | mllama caption -"


def _slots(batch_size: str) -> int | None:
    if batch_size == "auto":
        return None
    if batch_size.isdecimal() and int(batch_size) > 0:
        return int(batch_size)
    raise UsageError(f"--batch-size must be auto or a whole number from 1, not {batch_size!r}")


def _shard(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    index, slash, count = shard.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index), int(count)
    raise UsageError(f"--shard must be I/N with I from 1 to N, not {shard!r}", "Example: --shard 1/4")


def _extension(extension: str) -> str:
    extension = extension if extension.startswith(".") else f".{extension}"
    if extension.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"--extension {extension} would overwrite pictures", "Caption files are .txt or .caption.")
    if len(extension) < 2 or "/" in extension or "\\" in extension or "\0" in extension:
        raise UsageError(f"--extension cannot be {extension!r}", "Caption files are .txt or .caption.")
    return extension
