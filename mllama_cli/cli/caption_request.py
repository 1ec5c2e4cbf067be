"""The request of `mllama caption`: its options in groups, each checked when it is made.

Imported when the program starts, so the checks import what only they need.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.caption_shard_options import ShardOptions
from mllama_cli.cli.grammar_options import GrammarOptions
from mllama_cli.cli.options import (
    BatchComputeOptions,
    SamplingOptions,
    SharingOptions,
    Verbose,
    input_option,
    output_option,
)
from mllama_cli.core.caption_events import EXISTING
from mllama_cli.core.errors import UsageError
from mllama_cli.core.text import as_number, shown

if TYPE_CHECKING:
    from mllama_cli.captioning.postprocess import Postprocess
    from mllama_cli.captioning.prompts import PromptTemplate

prompt_option = partial(typer.Option, rich_help_panel="Prompt and caption text")
JSON_MAX_TOKENS = 512
"""Default length limit of a caption that is JSON."""

speed_option = partial(typer.Option, rich_help_panel="Speed")


@dataclass(frozen=True)
class CaptionInput:
    """The images to caption (``find_inputs`` lists them)."""

    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Folders, pictures, PDFs or globs; - reads a list of paths from stdin."),
    ] = None
    files_from: Annotated[
        str | None, input_option(metavar="FILE", help="A list of paths, one per line (- for stdin).")
    ] = None
    null: Annotated[bool, input_option("-0", "--null", help="Input paths are NUL-separated (find -print0).")] = False
    recursive: Annotated[bool, input_option("-r", "--recursive", help="Recurse into subfolders.")] = False
    glob: Annotated[
        str | None,
        input_option(metavar="PATTERN", help="In folders, only files whose name matches (default: all pictures)."),
    ] = None
    shard: Annotated[
        str | None,
        input_option(metavar="I/N", help="Only part I of N disjoint parts, for several GPUs or machines."),
    ] = None


@dataclass(frozen=True)
class CaptionPrompt:
    """The prompt, and how an answer becomes a caption."""

    prompt: Annotated[
        str | None,
        prompt_option(
            "-p",
            "--prompt",
            metavar="TEXT",
            help="The prompt; {name}, {stem}, {folder}, {existing} and {tags} are filled in "
            "(default: one that asks for one or two sentences).",
        ),
    ] = None
    prompt_file: Annotated[Path | None, prompt_option(metavar="FILE", help="Read the prompt from a file.")] = None
    style: Annotated[
        str | None,
        prompt_option(
            metavar="NAME",
            help="A ready-made prompt: short, detailed, tags or alt-text.",
            autocompletion=complete.caption_styles,
        ),
    ] = None
    system: Annotated[
        str | None,
        prompt_option("-s", "--system", "--system-prompt", metavar="TEXT", help="How the model should behave."),
    ] = None
    prefill: Annotated[
        str,
        prompt_option(metavar="TEXT", help='Begin every answer with this ("A photo of"); the model goes on.'),
    ] = ""
    prefix: Annotated[str, prompt_option(metavar="TEXT", help="Text before every caption, such as a trigger word.")] = (
        ""
    )
    suffix: Annotated[str, prompt_option(metavar="TEXT", help="Text after every caption.")] = ""
    strip: Annotated[bool, prompt_option("--strip", help='Remove openings such as "The image shows".')] = False

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
        from mllama_cli.system.files import expanded
        from mllama_cli.system.text_file import read_text

        if self.prompt is not None:
            return PromptTemplate(self.prompt)
        if self.prompt_file is None:
            return PromptTemplate(STYLES.get(self.style or "", DEFAULT_PROMPT))
        return PromptTemplate(read_text(expanded(str(self.prompt_file))).strip())

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
    """Where captions go, and what happens to existing ones."""

    existing: Annotated[
        str,
        prompt_option(
            metavar="ACTION",
            help="What to do with existing captions: skip, overwrite, append or prepend.",
            autocompletion=complete.existing_choices,
        ),
    ] = "skip"
    separator: Annotated[
        str | None,
        prompt_option(
            metavar="TEXT",
            help="Text between an existing caption and the new one (default: a space; a comma for tags).",
        ),
    ] = None
    output: Annotated[
        str | None,
        output_option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write all captions to one FILE.jsonl or FILE.csv; - prints JSON Lines.",
        ),
    ] = None
    sidecar: Annotated[
        bool, output_option("--sidecar", help="Write a caption file next to the picture, even for a single one.")
    ] = False
    extension: Annotated[
        str | None, output_option(metavar="EXT", help="Caption file extension (default: .txt; of JSON .json).")
    ] = None
    errors: Annotated[
        Path | None, output_option(metavar="FILE", help="Write a list of pictures that failed, with the reasons.")
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
        if self.extension is None:
            return ".txt"
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
    """What is printed during a run."""

    as_json: Annotated[bool, output_option("--json", help="Print a JSON object for each picture.")] = False
    preview: Annotated[bool, output_option("--preview", help="Show a thumbnail of each picture with its caption.")] = (
        False
    )
    fail_fast: Annotated[bool, output_option("--fail-fast", help="Stop at the first picture that fails.")] = False
    verbose: Verbose = False


@dataclass(frozen=True)
class CaptionBatching:
    """How many images are processed at once."""

    batch_size: Annotated[
        str, speed_option(metavar="N", help="Pictures captioned at once; auto: as many as memory allows.")
    ] = "auto"
    workers: Annotated[
        int | None,
        speed_option(
            metavar="N",
            min=0,
            help="Processes that decode pictures in advance (default: one for each CPU but one, at most 16).",
        ),
    ] = None

    replicas: Annotated[
        bool,
        speed_option(
            "--replicas", help="Load the whole model on each of the devices of --device, which share the pictures."
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and not as_number(self.batch_size):
            raise UsageError(f"--batch-size must be auto or a whole number from 1, not {shown(self.batch_size)}")

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
    compute: BatchComputeOptions
    sharing: SharingOptions
    sampling: SamplingOptions
    form: GrammarOptions
    shards: ShardOptions = field(default_factory=ShardOptions)

    def __post_init__(self) -> None:
        if self.batching.replicas and self.form.choice and self.prints_json:
            raise UsageError("--replicas gives no probabilities of --choice", "Leave out --replicas or --json.")
        self._check_shards()
        if not self.form.is_json:
            return
        if self.output.extension is None:
            object.__setattr__(self, "output", replace(self.output, extension=".json"))
        prompt, flag = self.prompt, "--schema" if self.form.schema is not None else "--json-mode"
        for name in ("strip", "prefix", "suffix"):
            if getattr(prompt, name):
                raise UsageError(f"--{name} would change the JSON of {flag}", "Leave one of them out.")
        if prompt.style == "tags":
            raise UsageError(f"--style tags and {flag} both say what a caption is", "Leave one of them out.")
        if self.output.existing in ("append", "prepend"):
            raise UsageError(
                f"--existing {self.output.existing} would put two JSON texts into one file", "Use skip or overwrite."
            )

    def _check_shards(self) -> None:
        """Raise UsageError for options that are for files and not for shards, or the other way round."""
        if self.shards.to is None:
            if self.prompt.template.reads_samples:
                raise UsageError("{txt} and {json.FIELD} quote samples of shards", "Add --to DIR, or leave them out.")
            return
        unfit = {
            "--output": self.output.output,
            "--sidecar": self.output.sidecar,
            "--existing": self.output.existing != "skip",
            "--extension": self.output.extension,
            "--separator": self.output.separator,
            "--preview": self.display.preview,
            "--recursive": self.inputs.recursive,
            "--glob": self.inputs.glob,
            "-0": self.inputs.null,
        }
        given = [flag for flag, value in unfit.items() if value]
        if given:
            raise UsageError(f"{given[0]} is not for shards, which --to captions", "Leave one of them out.")
        if self.prompt.template.reads_existing:
            raise UsageError("{existing} and {tags} quote caption files", "In shards, {txt} is the text of a sample.")
        if self.shards.claim and self.inputs.shard is not None:
            raise UsageError("--claim and --shard both say who captions which shard", "Leave one of them out.")

    @property
    def answer_sampling(self) -> dict[str, Any]:
        """The sampling parameters that were given, and what this command adds."""
        most = JSON_MAX_TOKENS if self.form.is_json else self.prompt.max_tokens
        grammar = {} if self.form.grammar is None else {"grammar": self.form.grammar}
        return {"max_tokens": most, **grammar, **self.sampling}

    @property
    def prints_json(self) -> bool:
        """Whether stdout gets an object for each image."""
        return self.display.as_json or self.output.output == "-"

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names that a schema lists, which are columns of a file; None if captions are not JSON."""
        return self.form.grammar.properties if self.form.grammar is not None and self.form.is_json else None

    @property
    def separator(self) -> str:
        """The text between an existing caption and the new one."""
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
        facts += [f"prefill {prompt.prefill}"] if prompt.prefill else []
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
