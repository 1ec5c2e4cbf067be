"""Run `mllama caption --to`: find the shards, open the model, show events, choose the exit code."""

import json
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, cast

import typer

from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.shards.claims import Claims, worker_name
from mllama_cli.captioning.shards.destination import ShardDestination
from mllama_cli.captioning.shards.entry import ReadOptions, Shard
from mllama_cli.captioning.shards.outputs import SUFFIXES, OutputForm, new_output
from mllama_cli.captioning.shards.packages import required
from mllama_cli.captioning.shards.paths import find_shards, part_of
from mllama_cli.captioning.shards.remote_store import CONDITIONAL
from mllama_cli.captioning.shards.run import ShardPlan, caption_shards, plan_shards
from mllama_cli.captioning.shards.settings_note import require_same_settings
from mllama_cli.captioning.shards.store import Store, StoreError, scheme_of
from mllama_cli.captioning.shards.stores import store_of
from mllama_cli.captioning.shards.tally import Tally
from mllama_cli.cli.answerers import Answerers, ModelChoice
from mllama_cli.cli.caption_inputs import read_lists, shard_part
from mllama_cli.cli.caption_request import CaptionRequest
from mllama_cli.cli.caption_run import error_list, loading_key, open_asker
from mllama_cli.cli.caption_shard_report import ShardReport
from mllama_cli.cli.common import ExitStatus, load_settings
from mllama_cli.core.caption_events import CaptionEvent, ShardEvent
from mllama_cli.core.errors import UsageError
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.type_ahead import TypeAhead


@dataclass(frozen=True)
class _Run:
    """What is captioned, where to, and who answers."""

    request: CaptionRequest
    terminal: Terminal
    answerers: Answerers
    model: ModelChoice
    store: Store
    folder: str
    form: OutputForm
    plan: ShardPlan


def run_shards(request: CaptionRequest, folder: str) -> None:
    """Caption the pictures of shards. Raise MllamaError, or typer.Exit if some failed or Ctrl-C was pressed."""
    terminal, options = Terminal(), request.shards
    form = cast(OutputForm, options.output_format or "parquet")
    if scheme_of(folder) not in ("", *CONDITIONAL):
        raise UsageError(f"--to {folder}: captions are written to folders, s3:// and gs://")
    store = store_of(folder)
    new_output(form, None).close()  # a missing package is said before anything is read
    if options.ray is not None:
        required("ray")
    shards = _shards(request)
    answerers = Answerers(terminal, request.compute, request.sharing, load_settings(), verbose=request.display.verbose)
    model = answerers.choose()
    require_same_settings(store, folder, _settings(request, model.name, form))
    plan = plan_shards(shards, store, folder, form)
    run = _Run(request, terminal, answerers, model, store, folder, form, plan)
    worker = worker_name()
    claims = Claims(store, folder, plan.pending, SUFFIXES[form], worker) if options.claim else None
    report = ShardReport(terminal, request, Tally(left=claims.in_all if claims else None))
    interrupted = False
    if plan.pending:
        with ExitStack() as stack:
            report.list_error = stack.enter_context(error_list(request.output.errors))
            stack.enter_context(TypeAhead(terminal, prompts=False))
            if claims is not None:
                stack.enter_context(claims)
            stack.callback(_write_summary, store, folder, worker, report)
            try:
                if options.ray is not None:
                    stack.enter_context(redirect_stdout(terminal.stderr))  # Ray prints the errors of its parts
                    events = _captioned_on_ray(run, options.ray)
                else:
                    shared = claims.take() if claims else plan.pending
                    events = _captioned_here(run, shared, claims.release if claims else lambda name: None, stack)
                with closing(events), report.view:
                    for event in events:
                        report.event(event)
                        if report.has_failed_pictures and request.display.fail_fast:
                            break
            except KeyboardInterrupt:
                interrupted = True
    else:
        report.planned(plan)
    report.end()
    if interrupted:
        terminal.note("Stopped. Run the same command to resume.")
        raise typer.Exit(ExitStatus.INTERRUPTED)
    if report.has_failures:
        raise typer.Exit(ExitStatus.PARTLY if report.tally.pictures else ExitStatus.FAILURE)


def _shards(request: CaptionRequest) -> list[Shard]:
    inputs = request.inputs
    paths = inputs.paths or []
    part = shard_part(inputs.shard)
    listed, _ = read_lists(paths, inputs.files_from, null=False)
    shards = find_shards([*(path for path in paths if path != "-"), *listed])
    return part_of(shards, *part) if part is not None else shards


def _read_options(request: CaptionRequest) -> ReadOptions:
    options = request.shards
    return ReadOptions(options.image_column, options.key_column, request.prompt.template.reads_samples)


def _captioned_here(
    run: _Run, shards: Iterable[Shard | None], released: Callable[[str], None], stack: ExitStack
) -> Generator[CaptionEvent | ShardEvent]:
    """Caption shards with a model of this process, or a running engine."""
    request = run.request
    pool = stack.enter_context(DecodingPool(request.batching.workers))
    pool.start()  # it is ready when the model is
    return caption_shards(
        run.plan,
        shards,
        open_asker(request, request.answer_sampling, run.terminal, run.answerers, run.model),
        ShardDestination(run.store, run.folder, run.form, request.columns, released),
        request.prompt.template,
        request.prompt.postprocess,
        _read_options(request),
        pool=pool,
    )


def _captioned_on_ray(run: _Run, address: str) -> Generator[CaptionEvent | ShardEvent]:
    """Caption shards with Ray's actors, each with a model of its own."""
    from mllama_cli.ray.actor import ShardWork
    from mllama_cli.ray.driver import caption_on_ray

    request, compute, model = run.request, run.answerers.compute, run.model
    work = ShardWork(
        run.folder,
        run.form,
        request.columns,
        _read_options(request),
        request.prompt.template.text,
        request.prompt.postprocess,
        str(model.folder) if model.folder is not None else model.name,
        model.name,
        request.prompt.system or "",
        request.prompt.prefill,
        request.batching.slots,
        request.batching.workers,
        request.answer_sampling,
        {
            "device": compute.device or "auto",
            "dtype": compute.dtype or "auto",
            "quantize": compute.quantize,
            "exact": compute.exact,
            "image_kv": compute.image_kv,
            "fast": compute.fast,
            "adapters": compute.adapter or (),
        },
    )
    return caption_on_ray(run.plan, work, address=address, actors=request.shards.actors)


def _settings(request: CaptionRequest, model: str, form: str) -> dict[str, Any]:
    """Return what captions depend on, but for the code."""
    prompt, post = request.prompt, request.prompt.postprocess
    compute = request.compute
    sampling = {name: repr(value) for name, value in sorted(request.answer_sampling.items())}
    return {
        "model": model + loading_key(compute) + (f" {compute.quantize}" if compute.quantize else ""),
        "prompt": prompt.template.text,
        "system": prompt.system or "",
        "prefill": prompt.prefill,
        "caption text": [post.strip, post.tags, post.prefix, post.suffix],
        "sampling": sampling,
        "format": form,
    }


def _write_summary(store: Store, folder: str, worker: str, report: ShardReport) -> None:
    with suppress(StoreError):  # the run's own error says it
        data = json.dumps({"worker": worker, **report.tally.fields()}, indent=2).encode()
        store.write(f"{folder.rstrip('/')}/_summary/{worker}.json", data)
