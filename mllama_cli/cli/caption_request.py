"""What `mllama caption` was asked to do, as one value: its options in groups, each checked when it is made.

Imported when the program starts: what only the checks need is imported by them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.options import OUTPUT, ComputeOptions, SamplingOptions, Verbose
from mllama_cli.core.caption_events import EXISTING
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    from mllama_cli.captioning.postprocess import Postprocess
    from mllama_cli.captioning.prompts import PromptTemplate

INPUT = "Input"
PROMPT = "Prompt and caption text"
SPEED = "Speed"


@dataclass(frozen=True)
class CaptionInput:
    """Which images to caption: see ``find_inputs``."""

    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Folders, pictures, globs; - for a list of paths on stdin."),
    ] = None
    files_from: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A list of paths, one a line (- for stdin).", rich_help_panel=INPUT),
    ] = None
    null: Annotated[
        bool,
        typer.Option("-0", "--null", help="Input paths are NUL-separated (find -print0).", rich_help_panel=INPUT),
    ] = False
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Recurse into subfolders.", rich_help_panel=INPUT)
    ] = False
    glob: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Only files in folders whose name matches.", rich_help_panel=INPUT),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="The I-th of N disjoint parts, for several GPUs or machines.", rich_help_panel=INPUT
        ),
    ] = None


@dataclass(frozen=True)
class CaptionPrompt:
    """What the model is asked, and how its answer becomes the caption."""

    prompt: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            help="The prompt; {name}, {stem}, {folder}, {existing} and {tags} are filled in.",
            rich_help_panel=PROMPT,
        ),
    ] = None
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The prompt, from a file.", rich_help_panel=PROMPT)
    ] = None
    style: Annotated[
        str | None,
        typer.Option(
            help="A ready-made prompt: short, detailed, alt-text or tags.",
            autocompletion=complete.caption_styles,
            rich_help_panel=PROMPT,
        ),
    ] = None
    system: Annotated[
        str | None,
        typer.Option("-s", "--system", "--system-prompt", help="How the model should behave.", rich_help_panel=PROMPT),
    ] = None
    prefix: Annotated[
        str, typer.Option(help="Text in front of every caption, such as a trigger word.", rich_help_panel=PROMPT)
    ] = ""
    suffix: Annotated[str, typer.Option(help="Text after every caption.", rich_help_panel=PROMPT)] = ""
    strip: Annotated[
        bool, typer.Option("--strip", help='Cut openings such as "The image shows".', rich_help_panel=PROMPT)
    ] = False

    def __post_init__(self) -> None:
        from mllama_cli.captioning.prompts import STYLES

        if self.style is not None and self.style not in STYLES:
            raise UsageError(f"--style cannot be {self.style!r}", f"It is one of {', '.join(STYLES)}.")
        given = [name for name in ("prompt", "prompt_file") if getattr(self, name) is not None]
        if len(given) > 1 or (given and self.style not in (None, "tags")):
            flags = [f"--{name.replace('_', '-')}" for name in (*given, "style")]
            raise UsageError(f"{' and '.join(flags[:2])} both say what is asked", "Leave one of them out.")
        _ = self.template  # a file that cannot be read, an unknown variable

    @cached_property
    def template(self) -> "PromptTemplate":
        from mllama_cli.captioning.prompts import DEFAULT_PROMPT, STYLES, PromptTemplate

        if self.prompt is not None:
            return PromptTemplate(self.prompt)
        if self.prompt_file is None:
            return PromptTemplate(STYLES.get(self.style or "", DEFAULT_PROMPT))
        try:
            return PromptTemplate(self.prompt_file.expanduser().read_text(encoding="utf-8-sig").strip())
        except UnicodeDecodeError:
            raise UsageError(f"{self.prompt_file} is not UTF-8 text", "Name a text file.") from None
        except OSError as error:
            raise UsageError(f"{self.prompt_file} cannot be read: {error.strerror}", "Check the path.") from None

    @property
    def postprocess(self) -> "Postprocess":
        from mllama_cli.captioning.postprocess import Postprocess

        return Postprocess(strip=self.strip, tags=self.style == "tags", prefix=self.prefix, suffix=self.suffix)

    @property
    def max_tokens(self) -> int:
        from mllama_cli.captioning.prompts import CAPTION_MAX_TOKENS, STYLE_MAX_TOKENS

        return STYLE_MAX_TOKENS.get(self.style or "", CAPTION_MAX_TOKENS)


@dataclass(frozen=True)
class CaptionOutput:
    """Where captions go, and what to do with those that exist."""

    existing: Annotated[
        str,
        typer.Option(
            help="What to do with existing captions: skip, overwrite, append or prepend.",
            autocompletion=complete.existing_choices,
            rich_help_panel=PROMPT,
        ),
    ] = "skip"
    separator: Annotated[
        str | None,
        typer.Option(
            help="Between an old caption and an appended one (default: a space; a comma for tags).",
            rich_help_panel=PROMPT,
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="All captions in one FILE.jsonl or FILE.csv; - for JSON Lines on stdout.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    sidecar: Annotated[
        bool,
        typer.Option(
            "--sidecar", help="Write a caption file next to the picture, even for a single one.", rich_help_panel=OUTPUT
        ),
    ] = False
    extension: Annotated[str, typer.Option(help="Caption file extension.", rich_help_panel=OUTPUT)] = ".txt"
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="List pictures that failed, with the reason.", rich_help_panel=OUTPUT),
    ] = None

    def __post_init__(self) -> None:
        if self.existing not in EXISTING:
            raise UsageError(f"--existing cannot be {self.existing!r}", f"It is one of {', '.join(EXISTING)}.")
        if self.output is not None:
            self._check_single_output(self.output)
        from mllama_cli.core.filetypes import IMAGE_SUFFIXES

        if self.file_extension.lower() in IMAGE_SUFFIXES:
            raise UsageError(
                f"--extension {self.file_extension} would overwrite pictures", "Caption files are .txt or .caption."
            )
        if len(self.file_extension) < 2 or any(each in self.file_extension for each in "/\\\0"):
            raise UsageError(f"--extension cannot be {self.file_extension!r}", "Caption files are .txt or .caption.")

    @property
    def file_extension(self) -> str:
        """The extension with its dot, which the user may leave out."""
        return self.extension if self.extension.startswith(".") else f".{self.extension}"

    def _check_single_output(self, output: str) -> None:
        if self.sidecar:
            raise UsageError("--output and --sidecar name two places for captions", "Leave one of them out.")
        if self.existing in ("append", "prepend"):
            raise UsageError(
                f"--existing {self.existing} changes caption files, and --output keeps captions elsewhere",
                "Use --existing skip or overwrite with --output; {existing} in a prompt quotes a caption file.",
            )
        if output == "-":
            if self.existing != "skip":
                raise UsageError(f"--existing {self.existing} has nothing to act on with --output -", "Leave it out.")
            return
        from mllama_cli.captioning.output_file import format_of

        format_of(output)


@dataclass(frozen=True)
class CaptionDisplay:
    """What is printed while captions are made."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each picture.", rich_help_panel=OUTPUT)
    ] = False
    preview: Annotated[
        bool, typer.Option("--preview", help="Show each picture small with its caption.", rich_help_panel=OUTPUT)
    ] = False
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first picture that fails.", rich_help_panel=OUTPUT)
    ] = False
    verbose: Verbose = False


@dataclass(frozen=True)
class CaptionBatching:
    """How many images are worked on at once."""

    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N", help="Pictures captioned at once; auto is as many as memory allows.", rich_help_panel=SPEED
        ),
    ] = "auto"
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode pictures ahead.", rich_help_panel=SPEED)
    ] = None

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and not (self.batch_size.isdecimal() and int(self.batch_size) > 0):
            raise UsageError(f"--batch-size must be auto or a whole number from 1, not {self.batch_size!r}")

    @property
    def slots(self) -> int | None:
        """Images captioned at once; None for as many as memory allows."""
        return None if self.batch_size == "auto" else int(self.batch_size)


@dataclass(frozen=True)
class CaptionRequest:
    inputs: CaptionInput
    prompt: CaptionPrompt
    output: CaptionOutput
    display: CaptionDisplay
    batching: CaptionBatching
    compute: ComputeOptions
    sampling: SamplingOptions

    @property
    def separator(self) -> str:
        """What is put between an old caption and a new one."""
        if self.output.separator is not None:
            return self.output.separator
        return ", " if self.prompt.style == "tags" else " "

    def run_key(self, roots: Sequence[str], model: str, sampling: Mapping[str, Any]) -> str:
        """Return a digest of the command: what is captioned, by what model, how, and where the captions go."""
        prompt, output, post = self.prompt, self.output, self.prompt.postprocess
        # The key must not change with the code: an append run that an update fails to resume would append twice.
        cuts = f"Polish(strip={post.strip!r}, tags={post.tags!r}, prefix={post.prefix!r}, suffix={post.suffix!r})"
        facts = [*sorted(roots), model, repr(sorted(sampling.items())), prompt.template.text, cuts]
        facts += [prompt.system or "", output.existing, self.separator, output.file_extension]
        facts += [os.path.realpath(output.output) if output.output else ""]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
