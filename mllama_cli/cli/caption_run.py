"""Run `mllama caption`: open destination and model, show events, choose the exit code."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from mllama_cli.captioning.asker import Asker
from mllama_cli.captioning.decoding import DecodingPool
from mllama_cli.captioning.destinations import CaptionDestination, NullDestination
from mllama_cli.captioning.journal import CaptionJournal
from mllama_cli.captioning.listing import CaptionPlan, Listing
from mllama_cli.captioning.records import as_json
from mllama_cli.captioning.sidecars import SidecarPaths, Sidecars
from mllama_cli.cli.answerers import Answerers, ModelChoice
from mllama_cli.cli.caption_inputs import find_inputs
from mllama_cli.cli.caption_request import CaptionRequest
from mllama_cli.cli.common import ExitStatus, error_fields, load_settings, usage_fields
from mllama_cli.cli.options import ComputeOptions, adapter_folders
from mllama_cli.core.caption_events import Captioned, CaptionEvent, CaptionFailed, CaptionsPlanned, Existing
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.system.files import expanded, is_file, resolved
from mllama_cli.system.safe_files import UnsafeFileError, open_marked
from mllama_cli.terminal.caption_view import CaptionView
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.type_ahead import TypeAhead

if TYPE_CHECKING:
    from mllama_cli.captioning.asker import Asker

ERRORS_HEADER = b"# pictures that mllama caption could not caption\treason\n"
"""The first line of the FILE of --errors, by which the next run knows that it may be written over."""
_NO_BREAKS = str.maketrans("\t\r\n", "   ")


def run_captions(request: CaptionRequest) -> None:
    """Caption the images. Raise MllamaError, or typer.Exit if images failed or Ctrl-C was pressed."""
    terminal = Terminal()
    inputs = find_inputs(request.inputs)
    if left_out := inputs.listing.left_out:
        others = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        terminal.note(
            f"Left out {left_out[0]}{others}: pictures whose names do not end like a picture's. "
            "Name such files themselves, or rename them."
        )
    if documents := inputs.listing.documents:
        others = f" and {len(documents) - 1} more" if len(documents) > 1 else ""
        terminal.note(f"Left out {documents[0]}{others}: PDF documents. Name them, or add --glob '*.pdf'.")
    answerers = Answerers(terminal, request.compute, request.sharing, load_settings(), verbose=request.display.verbose)
    model = answerers.choose()
    sampling = request.answer_sampling
    run = request.run_key(
        inputs.roots, f"{model.where} {request.compute.quantize}{loading_key(request.compute)}", sampling
    )
    # Only one image was named, and no option asks to save its caption.
    single = inputs.single_file and request.output.output is None and not request.output.sidecar
    destination = _destination(request, inputs.listing, run, terminal, keep=not single)
    plan = inputs.listing.plan(destination.is_done)
    printer = _Printer(terminal, request, single=single)
    view = CaptionView(terminal, verbose=request.display.verbose)
    interrupted = False
    if not plan.pending and not plan.unreadable:  # nothing left: skip loading the model
        destination.finish(exhausted=True, complete=True)
        view.event(CaptionsPlanned(plan.total, plan.skipped))
    else:
        with ExitStack() as stack:
            stack.callback(destination.finish, exhausted=False, complete=False)
            list_error = stack.enter_context(error_list(request.output.errors))
            pool = stack.enter_context(DecodingPool(request.batching.workers))
            pool.start()  # it is ready when the model is
            stack.enter_context(TypeAhead(terminal, prompts=False))
            try:
                asker = open_asker(request, sampling, terminal, answerers, model)
                events = _events(request, asker, plan, destination, pool)
                with closing(events), view:
                    for event in events:
                        view.event(event)
                        printer.event(event, view)
                        if isinstance(event, CaptionFailed):
                            list_error(event)
                            if request.display.fail_fast:
                                break
            except KeyboardInterrupt:
                interrupted = True
    if not single:
        view.summary()
    if interrupted:
        terminal.note("Stopped. Run the same command to resume.")
        raise typer.Exit(ExitStatus.INTERRUPTED)
    if view.failed:
        raise typer.Exit(ExitStatus.PARTLY if view.done or view.skipped else ExitStatus.FAILURE)


def loading_key(compute: ComputeOptions) -> str:
    """Return how the model is loaded as a part of a run's key; empty without options, as in older runs."""
    adapters = "".join(f" {resolved(folder)}" for folder in adapter_folders(compute.adapter))
    kept = f" {compute.image_kv} images" if compute.image_kv is not None else ""
    return adapters + kept + (" fast" if compute.fast else "")


def _events(
    request: CaptionRequest,
    asker: "Asker",
    plan: CaptionPlan,
    destination: CaptionDestination,
    pool: DecodingPool,
) -> Generator[CaptionEvent]:
    from mllama_cli.captioning.run import caption_images

    prompt = request.prompt
    yield from caption_images(plan, asker, destination, prompt.template, prompt.postprocess, pool=pool)


def open_asker(
    request: CaptionRequest, sampling: Mapping[str, Any], terminal: Terminal, answerers: Answerers, model: ModelChoice
) -> "Asker":
    """Return a running engine or one in this process, its weights loaded, as the pipeline asks it."""
    if request.batching.replicas:
        return _replicas(request, sampling, terminal, answerers, model)
    from dataclasses import replace

    from mllama_cli.core.sampling import Sampling
    from mllama_cli.remote.answerer import RemoteAnswerer
    from mllama_cli.terminal.answer_view import StatusLine

    prompt, slots = request.prompt, request.batching.slots
    with StatusLine(terminal) as status:
        engine = answerers.running(model, status) or answerers.opened(model, status)
        # Greedy unless asked otherwise, so that a resumed run gives the same captions.
        greedy = Sampling.from_defaults(replace(engine.about.generation, do_sample=False), **sampling)
        is_remote, scores = isinstance(engine, RemoteAnswerer), bool(request.form.choice) and request.prints_json
        if not is_remote:
            for event in engine.load_weights(vision=True):
                status.event(event)
        if is_remote or scores:
            from mllama_cli.captioning.answerer_asker import AnswererAsker

            at_once = (slots or max(1, engine.info.slots)) if isinstance(engine, RemoteAnswerer) else 1
            return AnswererAsker(
                engine,
                greedy,
                prompt.system or "",
                at_once=at_once,
                prefill=prompt.prefill,
                scores_choices=scores,
                draws_canvases=not is_remote,
            )

        from mllama_cli.captioning.engine_asker import EngineAsker
        from mllama_cli.engine.engine import Engine

        assert isinstance(engine, Engine)
        for event in engine.prepare_batch():
            status.event(event)
    return EngineAsker(engine, greedy, prompt.system or "", slots, prefill=prompt.prefill)


def _replicas(
    request: CaptionRequest, sampling: Mapping[str, Any], terminal: Terminal, answerers: Answerers, model: ModelChoice
) -> "Asker":
    """Return an engine for each device, their weights loaded."""
    from dataclasses import replace

    from mllama_cli.captioning.replicas import Asked, ReplicaAsker
    from mllama_cli.core.sampling import Sampling
    from mllama_cli.terminal.answer_view import StatusLine

    prompt = request.prompt
    with StatusLine(terminal) as status:
        status.show("Starting")
        asker = ReplicaAsker(answerers.compute.replicas(model.folder, model.name))
        greedy = Sampling.from_defaults(replace(asker.about.generation, do_sample=False), **sampling)
        for event in asker.load(Asked(greedy, prompt.system or "", request.batching.slots, prompt.prefill)):
            status.event(event)
    return asker


def _destination(
    request: CaptionRequest, listing: Listing, run: str, terminal: Terminal, *, keep: bool
) -> CaptionDestination:
    output = request.output
    existing = cast(Existing, output.existing)
    path_of = SidecarPaths(listing.entries, output.file_extension)
    texts = Sidecars(path_of)
    if output.output == "-" or not keep:
        return NullDestination(texts)
    if output.output is not None:
        from mllama_cli.captioning.output_file import OutputFile

        return OutputFile(
            output.output, overwrite=existing == "overwrite", run=run, texts=texts, columns=request.columns
        )
    if path_of.collided:
        example = next(each for each in listing.entries if each.path in path_of.collided)
        terminal.note(
            f"{len(path_of.collided)} pictures differ only in their extension, so their caption files keep it: "
            f"{Path(path_of(example)).name} for {example.name}."
        )
    journal = CaptionJournal(run) if existing != "skip" else None
    sidecars = Sidecars(path_of, existing=existing, separator=request.separator, journal=journal)
    if sidecars.just_finished:
        terminal.note("This command was completed within the last minute: what it captioned is not captioned again.")
    return sidecars


class _Printer:
    """Prints to stdout: nothing, the single caption, or a JSON object for each image."""

    def __init__(self, terminal: Terminal, request: CaptionRequest, *, single: bool) -> None:
        self._terminal = terminal
        self._json = request.prints_json
        self._single, self._with_fields = single, request.form.is_json
        self._preview = request.display.preview and terminal.stdout_is_tty and not self._json

    def event(self, event: CaptionEvent, view: CaptionView) -> None:
        if not isinstance(event, Captioned | CaptionFailed):
            return
        if self._single and isinstance(event, CaptionFailed):
            view.stop()
            self._terminal.error(f"{event.record.path}: {event.record.error}", event.hint)
        if self._json:
            # A file name may be any bytes, which a text stream takes only escaped.
            plain = event.record.path.isprintable()
            self._terminal.result(
                json.dumps(_record(event, with_fields=self._with_fields), ensure_ascii=not plain) + "\n"
            )
        elif isinstance(event, Captioned):
            if self._preview:
                self._show(event, view)
            if self._single:
                view.stop()
                self._terminal.result(event.record.caption + "\n")

    def _show(self, event: Captioned, view: CaptionView) -> None:
        from mllama_cli.core.config import ImageProcessorConfig
        from mllama_cli.processing.decoding import decode_image
        from mllama_cli.processing.documents import read_images
        from mllama_cli.terminal.graphics import show_preview

        try:
            path = event.record.path  # a page of a document is no file
            (part,) = read_images(Path(path) if is_file(path) else path)
            image = decode_image(part, ImageProcessorConfig()).canvas.image()
        except MllamaError:  # deleted since
            return
        with view.paused():
            show_preview(self._terminal, image, max_columns=32, max_rows=10)
            if not self._single:
                self._terminal.result(f"{event.record.path}: {event.record.caption}\n")


def _record(event: Captioned | CaptionFailed, *, with_fields: bool) -> dict[str, Any]:
    """Return an image's object: an answer as `chat --json` has it, and the columns of a file of captions."""
    record = event.record
    answer: dict[str, Any] = {"path": record.path, "model": record.model}
    if isinstance(event, Captioned):
        answer |= {"text": record.caption, "finish_reason": event.finish_reason}
        answer["usage"] = usage_fields(event.prompt_tokens, record.tokens, 1)
        answer |= {"probabilities": event.probabilities} if event.probabilities is not None else {}
        return {**answer, **as_json(record, with_fields=with_fields)}
    values = as_json(record, with_fields=with_fields)
    return {**answer, "text": None, **values, "error": error_fields(record.error, event.hint, event.kind)}


@contextmanager
def error_list(path: Path | None) -> Iterator[Callable[[CaptionFailed], None]]:
    """Yield a function that adds a line to the FILE of --errors: an image's path, a tab and the reason."""
    if path is None:
        yield lambda event: None
        return
    target = str(expanded(str(path)))
    try:
        file = open_marked(target, ERRORS_HEADER)
    except OSError as error:
        hint = "Move it away, or name another file." if isinstance(error, UnsafeFileError) else "Name another file."
        raise UsageError(f"--errors {path} cannot be written: {error.strerror}", hint) from None

    header = ERRORS_HEADER  # an empty list means that nothing failed

    def add(event: CaptionFailed) -> None:
        nonlocal header
        path = event.record.path.translate(_NO_BREAKS)  # a stranger's name of a member must not add a line
        line = f"{path}\t{' '.join(event.record.error.split())}\n"
        file.write(header + line.encode("utf-8", "surrogateescape"))
        file.flush()
        header = b""

    with file:
        yield add
