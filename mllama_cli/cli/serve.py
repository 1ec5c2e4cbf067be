"""`mllama serve`: answer over HTTP in the protocols of OpenAI and ollama."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mllama_cli.cli.common import BUILT_IN_NOTE, ExitStatus, load_settings, resolve_model
from mllama_cli.cli.options import BatchComputeOptions, Debug, adapter_folders, option_groups, output_option
from mllama_cli.cli.serve_lines import file_lines, port_lines, server_url
from mllama_cli.core.duration import parse_duration
from mllama_cli.core.errors import UsageError

if TYPE_CHECKING:
    import socket

    from mllama_cli.engine.engine import Engine
    from mllama_cli.serving.settings import ServerSettings
    from mllama_cli.terminal.console import Terminal

_ADDRESS, _LIMITS, _ACCESS = "Address", "Limits", "Access"


@option_groups
def serve(
    *,
    compute: BatchComputeOptions,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0 lets other machines in.", rich_help_panel=_ADDRESS)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any that is free.", rich_help_panel=_ADDRESS)
    ] = 11434,
    uds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Listen on a Unix socket that only you can use.", rich_help_panel=_ADDRESS),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="MLLAMA_API_KEY",
            help="What clients must send as `Authorization: Bearer KEY` (default: $MLLAMA_API_KEY, or none).",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file that holds the key.", rich_help_panel=_ACCESS),
    ] = None,
    allow_image_urls: Annotated[
        bool,
        typer.Option(
            "--allow-image-urls",
            help="Fetch images that clients name by http(s) address, from public addresses only.",
            rich_help_panel=_ACCESS,
        ),
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin ask (repeatable).", rich_help_panel=_ACCESS),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name of this server in URLs (repeatable).", rich_help_panel=_ACCESS),
    ] = None,
    slots: Annotated[
        str, typer.Option(metavar="auto|N", help="Requests answered at once.", rich_help_panel=_LIMITS)
    ] = "auto",
    max_queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests that may wait.", rich_help_panel=_LIMITS)
    ] = 256,
    max_context: Annotated[
        int,
        typer.Option(metavar="N", min=16, help="Tokens of a prompt and its answer.", rich_help_panel=_LIMITS),
    ] = 8192,
    keep_alive: Annotated[
        str,
        typer.Option(
            metavar="forever|TIME",
            help="How long the weights stay in memory after an answer; the next request loads them again.",
            rich_help_panel=_LIMITS,
        ),
    ] = "forever",
    grace: Annotated[
        str,
        typer.Option(metavar="TIME", help="Time for running answers to end on Ctrl-C.", rich_help_panel=_LIMITS),
    ] = "30s",
    verbose: Annotated[bool, output_option("--verbose", help="Print a line for each request to stderr.")] = False,
    debug: Debug = False,
) -> None:
    """Serve a model over HTTP, for clients of OpenAI and of ollama.

    Example: mllama serve -m 11b
    """
    from mllama_cli.serving.settings import ServerSettings
    from mllama_cli.terminal.console import Terminal

    settings = ServerSettings(
        host=host,
        api_key=_key(api_key, api_key_file),
        allow_image_urls=allow_image_urls,
        cors=tuple(cors or ()),
        allowed_hosts=tuple(allowed_host or ()),
        slots=_slots(slots),
        max_queue=max_queue,
        max_context=max_context,
        keep_alive=None if keep_alive == "forever" else _seconds(keep_alive, "--keep-alive"),
        grace=_seconds(grace, "--grace"),
    )
    from mllama_cli.serving.sockets import bind, bind_file

    terminal = Terminal()
    bound = bind_file(uds) if uds is not None else bind(host, port)
    try:
        _serve(terminal, compute.with_defaults(load_settings()), settings, bound, uds, verbose)
    finally:
        bound.close()
        if uds is not None:
            uds.unlink(missing_ok=True)


def _serve(
    terminal: "Terminal",
    compute: BatchComputeOptions,
    settings: "ServerSettings",
    bound: "socket.socket",
    uds: Path | None,
    verbose: bool,
) -> None:
    import signal
    from dataclasses import replace

    from mllama_cli.hub.catalog import is_built_in

    name, folder = resolve_model(compute.model, terminal)
    if compute.model is None and is_built_in(name) and not terminal.stderr_is_tty:  # else it has been said
        terminal.note(BUILT_IN_NOTE)
    # First: a GPU's context is created while torch is imported.
    engine = _loaded(terminal, compute, folder, name)
    from mllama_cli.serving.app import create_app
    from mllama_cli.serving.registration import registered
    from mllama_cli.serving.run import serve as run

    adapters = adapter_folders(compute.adapter)
    with registered(engine, compute.device, compute.dtype, compute.quantize, compute.exact, adapters) as own:
        app = create_app(
            engine,
            settings if own is None else replace(settings, private_server=own.server, private_key=own.token),
            log=terminal.note if verbose else None,
            reopen=lambda: compute.open_engine(folder, name, load_soon=False),
            address="" if uds else server_url(settings.host, bound.getsockname()[1]),
        )
        del engine  # which ``keep_alive`` drops

        main_name = app.state.service.names.main

        def ready() -> None:
            port = bound.getsockname()[1]
            for line in file_lines(main_name, settings, uds) if uds else port_lines(main_name, settings, port):
                terminal.err.print(line, soft_wrap=True, no_wrap=True)

        sockets = [bound] if own is None else [bound, own.bound]
        ended_by = run(app, app.state.service, sockets, ready=ready)
    if ended_by == signal.SIGINT:
        raise typer.Exit(ExitStatus.INTERRUPTED)


def _loaded(terminal: "Terminal", compute: BatchComputeOptions, folder: Path, name: str) -> "Engine":
    from mllama_cli.terminal.answer_view import StatusLine

    with StatusLine(terminal) as status:
        status.show("Starting")
        engine = compute.open_engine(folder, name)
        for event in engine.load_weights(vision=engine.has_vision):
            status.event(event)
    return engine


def _key(given: str | None, file: Path | None) -> str | None:
    from mllama_cli.system.files import expanded
    from mllama_cli.system.text_file import read_text

    if file is None:
        return given
    if given is not None:
        raise UsageError("--api-key (or MLLAMA_API_KEY) and --api-key-file are mutually exclusive")
    return read_text(expanded(file), limit=4096).strip()


def _slots(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 4096):
        raise UsageError(f"--slots must be auto or a number from 1 on, not {text!r}")
    return int(text)


def _seconds(text: str, option: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option} must be a time such as 30s or 5m, not {text!r}") from error
