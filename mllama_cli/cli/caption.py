"""`mllama caption`: caption images, next to them, in one file, or on stdout."""

from mllama_cli.cli.caption_request import (
    CaptionBatching,
    CaptionDisplay,
    CaptionInput,
    CaptionOutput,
    CaptionPrompt,
    CaptionRequest,
)
from mllama_cli.cli.caption_shard_options import ShardOptions
from mllama_cli.cli.grammar_options import GrammarOptions
from mllama_cli.cli.options import BatchComputeOptions, Debug, SamplingOptions, SharingOptions, option_groups


@option_groups
def caption(
    *,
    inputs: CaptionInput,
    prompt: CaptionPrompt,
    output: CaptionOutput,
    display: CaptionDisplay,
    batching: CaptionBatching,
    compute: BatchComputeOptions,
    sharing: SharingOptions,
    sampling: SamplingOptions,
    form: GrammarOptions,
    shards: ShardOptions,
    debug: Debug = False,
) -> None:
    """Write captions for pictures: photo.txt next to photo.jpg.

    Existing captions are kept, so running the same command again resumes a stopped run.
    The caption of a single picture is printed, not written.
    With --to, the pictures in webdataset tars and parquet files are captioned.

    Example: mllama caption photos/
    """
    request = CaptionRequest(inputs, prompt, output, display, batching, compute, sharing, sampling, form, shards)
    if shards.to is not None:
        from mllama_cli.cli.caption_shards import run_shards

        run_shards(request, shards.to)
    else:
        from mllama_cli.cli.caption_run import run_captions

        run_captions(request)
