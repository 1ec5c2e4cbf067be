"""Runs `mllama caption`: destination, model, events to the screen and to files, exit code."""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mllama_cli.captioning.destinations import Destination, Nowhere
from mllama_cli.captioning.journal import Journal
from mllama_cli.captioning.plan import Plan, make_plan
from mllama_cli.captioning.records import as_json as record_as_json
from mllama_cli.captioning.sidecar_names import sidecar_paths
from mllama_cli.captioning.sidecars import Sidecars
from mllama_cli.cli.caption_request import CaptionRequest
from mllama_cli.cli.common import ExitStatus, load_settings, resolve_model
from mllama_cli.cli.options import ComputeOptions, SamplingOptions
from mllama_cli.core.caption_events import Captioned, CaptionEvent, CaptionFailed, CaptionPlan
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.text import strip_control
from mllama_cli.terminal.caption_view import CaptionView
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from mllama_cli.engine.engine import Engine


def run_captions(
    request: CaptionRequest,
    *,
    compute: ComputeOptions,
    sampling: SamplingOptions,
    errors: Path | None,
    as_json: bool,
    preview: bool,
    fail_fast: bool,
    workers: int | None,
    verbose: bool,
) -> None:
    """Caption what was asked for. Raises MllamaError; typer.Exit where pictures failed or Ctrl-C was pressed."""
    terminal = Terminal()
    compute = compute.with_defaults(load_settings())
    name, folder = resolve_model(compute.model, terminal)
    flags = {"max_tokens": request.max_tokens, **sampling}
    key = request.run_key(f"{folder} {compute.quantize}", sorted(flags.items(), key=lambda pair: pair[0]))
    destination = _destination(request, key, terminal)
    plan = make_plan(request.listing, destination)
    printer = _Printer(terminal, request, as_json=as_json, preview=preview)
    view = CaptionView(terminal, verbose=verbose)
    interrupted = False
    if not plan.pending and not plan.unreadable:  # all done: no model is needed to say so
        destination.finish(through=True, complete=True)
        view.event(CaptionPlan(plan.total, plan.skipped))
    else:
        with _let_go(destination), _error_list(errors) as error_list:
            try:
                engine = _engine(terminal, compute, folder, name)
                # One picture needs no workers, which take half a second to start.
                count = 0 if workers is None and len(plan.pending) <= 2 else workers
                events = _events(engine, plan, destination, request, flags, count)
                with closing(events), view:
                    for event in events:
                        view.event(event)
                        printer.event(event, view)
                        if isinstance(event, CaptionFailed):
                            error_list(event)
                            if fail_fast:
                                break
            except KeyboardInterrupt:
                interrupted = True
    if not request.single:
        view.summary()
    if interrupted:
        terminal.note("Stopped. The same command goes on from here.")
        raise typer.Exit(ExitStatus.INTERRUPTED)
    if view.failed:
        raise typer.Exit(ExitStatus.PARTLY if view.done or view.skipped else ExitStatus.FAILURE)


@contextmanager
def _let_go(destination: Destination) -> Iterator[None]:
    """Whatever stops a run before its first picture, its destination is not held any longer."""
    try:
        yield
    finally:
        destination.finish(through=False, complete=False)


def _events(
    engine: "Engine",
    plan: Plan,
    destination: Destination,
    request: CaptionRequest,
    flags: dict[str, Any],
    workers: int | None,
) -> Generator[CaptionEvent]:
    from dataclasses import replace

    from mllama_cli.captioning.run import Task, caption_pictures
    from mllama_cli.core.sampling import Sampling

    # Greedy unless asked otherwise, so that a run that is taken up again says the same.
    greedy = replace(engine.generation_config, do_sample=False)
    task = Task(request.prompt, Sampling.from_defaults(greedy, **flags), request.polish, request.system)
    yield from caption_pictures(engine, plan, destination, task, slots=request.slots, workers=workers)


def _engine(terminal: Terminal, compute: ComputeOptions, folder: Path, name: str) -> "Engine":
    from mllama_cli.terminal.answer_view import StatusLine

    with StatusLine(terminal) as status:
        status.show("Starting")
        engine = compute.open_engine(folder, name)
        for event in engine.load_weights(vision=True):
            status.event(event)
        for event in engine.prepare_batch():
            status.event(event)
    return engine


def _destination(request: CaptionRequest, key: str, terminal: Terminal) -> Destination:
    pictures = request.listing.pictures
    places, collided = sidecar_paths(pictures, request.extension)
    texts = Sidecars(places)
    if request.single or request.output == "-":
        return Nowhere(texts)
    if request.output is not None:
        from mllama_cli.captioning.output_file import OutputFile

        return OutputFile(request.output, overwrite=request.existing == "overwrite", run=key, texts=texts)
    if collided:
        example = next(p for p in pictures if places[p.path] == p.path + request.extension)
        terminal.note(
            f"{collided} pictures differ only in their ending; their captions have the whole name: "
            f"{example.name} has {example.name}{request.extension}."
        )
    journal = Journal(key) if request.existing != "skip" else None
    return Sidecars(places, existing=request.existing, separator=request.separator, journal=journal)


class _Printer:
    """What goes to stdout: nothing, the single caption, or a JSON object for each picture."""

    def __init__(self, terminal: Terminal, request: CaptionRequest, *, as_json: bool, preview: bool) -> None:
        self._terminal = terminal
        self._json = as_json or request.output == "-"
        self._single = request.single
        self._preview = preview and terminal.stdout_is_tty and not self._json

    def event(self, event: CaptionEvent, view: CaptionView) -> None:
        if not isinstance(event, Captioned | CaptionFailed):
            return
        if self._single and isinstance(event, CaptionFailed):
            view.stop()
            self._terminal.error(strip_control(f"{event.record.path}: {event.record.error}"), event.hint)
        if self._json:
            # A file's name may be any bytes, which only escapes bring through a stream of text.
            plain = event.record.path.isprintable()
            self._terminal.stdout.write(json.dumps(record_as_json(event.record), ensure_ascii=not plain) + "\n")
            self._terminal.stdout.flush()
        elif isinstance(event, Captioned):
            if self._preview:
                self._show(event, view)
            if self._single:
                view.stop()
                self._terminal.stdout.write(event.record.caption + "\n")
                self._terminal.stdout.flush()

    def _show(self, event: Captioned, view: CaptionView) -> None:
        from mllama_cli.processing.images import open_image
        from mllama_cli.processing.sources import read_image
        from mllama_cli.terminal.graphics import show_preview

        try:
            picture = open_image(read_image(Path(event.record.path)))
        except MllamaError:  # gone since
            return
        with view.paused():
            show_preview(self._terminal, picture, max_columns=32, max_rows=10)
            if not self._single:
                shown = f"{event.record.path}: {event.record.caption}"
                self._terminal.out.print(strip_control(shown), markup=False)


@contextmanager
def _error_list(path: Path | None) -> Iterator[Callable[[CaptionFailed], None]]:
    """Gives what adds a line to the FILE of --errors: a picture's path, a tab and the reason."""
    if path is None:
        yield lambda event: None
        return
    try:
        file = path.expanduser().open("w", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"--errors {path} cannot be written: {error.strerror}", "Name another file.") from None

    def add(event: CaptionFailed) -> None:
        file.write(f"{event.record.path}\t{' '.join(event.record.error.split())}\n")
        file.flush()

    with file:
        yield add
