"""Run `mllama caption --to`: find the shards, open the model, show events, choose the exit code."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, cast

import typer

from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.shards.claims import Claims, worker_name
from mllama_cli.captioning.shards.destination import ShardDestination
from mllama_cli.captioning.shards.entry import ReadOptions, Shard
from mllama_cli.captioning.shards.outputs import SUFFIXES, OutputForm, new_output
from mllama_cli.captioning.shards.paths import find_shards, part_of
from mllama_cli.captioning.shards.remote_store import CONDITIONAL
from mllama_cli.captioning.shards.run import ShardPlan, caption_shards, plan_shards
from mllama_cli.captioning.shards.settings_note import require_same_settings
from mllama_cli.captioning.shards.store import Store, StoreError, scheme_of
from mllama_cli.captioning.shards.stores import store_of
from mllama_cli.captioning.shards.tally import Tally
from mllama_cli.cli.answerers import Answerers
from mllama_cli.cli.caption_inputs import read_lists, shard_part
from mllama_cli.cli.caption_request import CaptionRequest
from mllama_cli.cli.caption_run import adapters_key, error_list, open_asker
from mllama_cli.cli.common import ExitStatus, load_settings
from mllama_cli.core.caption_events import CaptionEvent, CaptionFailed, ShardDone, ShardEvent, ShardFailed
from mllama_cli.core.errors import UsageError
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.progress import clock
from mllama_cli.terminal.shard_view import ShardView
from mllama_cli.terminal.type_ahead import TypeAhead

PROGRESS_SECONDS = 10.0
"""How often --json prints the counts."""
DRAW_SECONDS = 0.25


def run_shards(request: CaptionRequest, folder: str) -> None:
    """Caption the pictures of shards. Raise MllamaError, or typer.Exit if some failed or Ctrl-C was pressed."""
    terminal, options = Terminal(), request.shards
    form = cast(OutputForm, options.output_format or "parquet")
    store = store_of(folder)
    if scheme_of(folder) not in ("", *CONDITIONAL):
        raise UsageError(f"--to {folder}: captions are written to folders, s3:// and gs://")
    new_output(form, None).close()  # a missing package is said before anything is read
    shards = _shards(request)
    answerers = Answerers(terminal, request.compute, request.sharing, load_settings(), verbose=request.display.verbose)
    model = answerers.choose()
    require_same_settings(store, folder, _settings(request, model.name, form))
    if options.ray is not None:
        _run_on_ray(request, folder, shards, terminal, answerers)
        return
    plan = plan_shards(shards, store, folder, form)
    worker = worker_name()
    claims = Claims(store, folder, plan.pending, SUFFIXES[form], worker) if options.claim else None
    report = _Report(terminal, request, Tally(left=claims.in_all if claims else None))
    interrupted = False
    if plan.pending:
        with ExitStack() as stack:
            report.list_error = stack.enter_context(error_list(request.output.errors))
            pool = stack.enter_context(DecodingPool(request.batching.workers))
            pool.start()  # it is ready when the model is
            stack.enter_context(TypeAhead(terminal, prompts=False))
            if claims is not None:
                stack.enter_context(claims)
            stack.callback(_write_summary, store, folder, worker, report)
            try:
                asker = open_asker(request, request.answer_sampling, terminal, answerers, model)
                destination = ShardDestination(
                    store, folder, form, request.columns, claims.release if claims else lambda name: None
                )
                events = caption_shards(
                    plan,
                    claims.take() if claims else plan.pending,
                    asker,
                    destination,
                    request.prompt.template,
                    request.prompt.postprocess,
                    _read_options(request),
                    pool=pool,
                )
                with closing(events), report.view:
                    for event in events:
                        report.event(event)
                        if isinstance(event, CaptionFailed) and request.display.fail_fast:
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


def _run_on_ray(
    request: CaptionRequest, folder: str, shards: Sequence[Shard], terminal: Terminal, answerers: Answerers
) -> None:
    from mllama_cli.ray.pipeline import caption_on_ray

    prompt, compute, options = request.prompt, answerers.compute, request.shards
    load = {
        "device": compute.device or "auto",
        "dtype": compute.dtype or "auto",
        "quantize": compute.quantize,
        "exact": compute.exact,
        "adapters": compute.adapter or (),
    }
    model = answerers.choose()
    started = time.monotonic()
    pictures, failed = caption_on_ray(
        shards,
        folder,
        _read_options(request),
        {
            "model": str(model.folder) if model.folder is not None else model.name,
            "prompt": prompt.template.text,
            "system": prompt.system or "",
            "prefill": prompt.prefill,
            "postprocess": prompt.postprocess,
            "slots": request.batching.slots,
            "sampling": request.answer_sampling,
            "load": load,
        },
        address=options.ray or "auto",
        actors=options.actors,
        progress=terminal.stderr_is_tty,
        columns=request.columns,
    )
    seconds = time.monotonic() - started
    if request.prints_json:
        counts = {"pictures": pictures - failed, "failed": failed, "seconds": round(seconds, 1)}
        terminal.result(json.dumps({"event": "summary", **counts}) + "\n")
    failures = f", failed {failed} (their rows say why)" if failed else ""
    terminal.note(f"Captioned {pictures - failed} pictures{failures} in {clock(seconds)}.")
    if failed:
        raise typer.Exit(ExitStatus.PARTLY if failed < pictures else ExitStatus.FAILURE)


def _settings(request: CaptionRequest, model: str, form: str) -> dict[str, Any]:
    """Return what captions depend on, but for the code."""
    prompt, post = request.prompt, request.prompt.postprocess
    compute = request.compute
    sampling = {name: repr(value) for name, value in sorted(request.answer_sampling.items())}
    return {
        "model": model + adapters_key(compute) + (f" {compute.quantize}" if compute.quantize else ""),
        "prompt": prompt.template.text,
        "system": prompt.system or "",
        "prefill": prompt.prefill,
        "caption text": [post.strip, post.tags, post.prefix, post.suffix],
        "sampling": sampling,
        "format": form,
    }


def _write_summary(store: Store, folder: str, worker: str, report: "_Report") -> None:
    with suppress(StoreError):  # the run's own error says it
        data = json.dumps({"worker": worker, **report.tally.fields()}, indent=2).encode()
        store.write(f"{folder.rstrip('/')}/_summary/{worker}.json", data)


class _Report:
    """Counts the events and shows them: a bar and a summary for people, JSON lines for machines."""

    def __init__(self, terminal: Terminal, request: CaptionRequest, tally: Tally) -> None:
        self._terminal = terminal
        self._json = request.prints_json
        self.tally, self.view = tally, ShardView(terminal)
        self.list_error: Callable[[CaptionFailed], None] = lambda event: None
        self._printed = self._drawn = time.monotonic()

    @property
    def has_failures(self) -> bool:
        return bool(self.tally.failed or self.tally.shards_failed or self.tally.damaged)

    def planned(self, plan: ShardPlan) -> None:
        """Count a run that has nothing left to do."""
        self.tally.shards, self.tally.done_before = plan.total, plan.total - len(plan.pending)

    def event(self, event: CaptionEvent | ShardEvent) -> None:
        self.tally.event(event)
        if isinstance(event, CaptionFailed):
            record = event.record
            self.list_error(event)
            self.view.failed(record.path, record.error)
            self._say("failed", {"path": record.path, "error": record.error, "hint": event.hint})
        elif isinstance(event, ShardFailed):
            self.view.failed(event.path, event.error)
            self._say("shard_failed", {"path": event.path, "error": event.error, "hint": event.hint})
        elif isinstance(event, ShardDone):
            if event.damage:
                self.view.note(f"{event.path} {event.damage}: {event.pictures} pictures precede.")
            about = {"output": event.output, "pictures": event.pictures, "failed": event.failed}
            self._say("shard_done", {"path": event.path, **about, "damage": event.damage or None, "new": event.is_new})
        now = time.monotonic()
        if self._json and now - self._printed >= PROGRESS_SECONDS:
            self._say("progress", self.tally.fields())
            self._printed = now
        if now - self._drawn >= DRAW_SECONDS:
            self.view.show(self.tally.fields())
            self._drawn = now

    def end(self) -> None:
        """Print the summary."""
        self.view.summary(self.tally.fields())
        self._say("summary", self.tally.fields())

    def _say(self, event: str, fields: Mapping[str, Any]) -> None:
        if self._json:
            self._terminal.result(json.dumps({"event": event, **fields}) + "\n")
