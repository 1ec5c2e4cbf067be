"""`mllama ps` and `mllama stop`: list the engines that run, and end them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import print_json
from mllama_cli.cli.options import AsJson, Debug
from mllama_cli.core.duration import shown_duration
from mllama_cli.core.errors import BusyError, MllamaError, ModelNotFoundError, UsageError
from mllama_cli.core.text import human_size

if TYPE_CHECKING:
    from mllama_cli.remote.client import Address
    from mllama_cli.remote.question import EngineInfo
    from mllama_cli.terminal.console import Terminal

_STARTED_BY = {True: "keep-alive", False: "serve"}


def ps(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the running engines: model, device, memory, answers, time until they end, address."""
    from mllama_cli.terminal.console import Terminal
    from mllama_cli.terminal.tables import print_table

    terminal = Terminal()
    found = list(_engines(terminal))
    if as_json:
        print_json(terminal, [_record(address, info) for address, info in found])
        return
    titles = ("NAME", "DEVICE", "FORMAT", "MEMORY", "BUSY", "ENDS IN", "STARTED BY", "ADDRESS")
    print_table(terminal, titles, [_row(address, info) for address, info in found], right=("MEMORY",))
    if not found:
        terminal.note("No engine is running. Keep one warm with `mllama chat --keep-alive 10m`, or run `mllama serve`.")


def stop(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="The model whose engines end; may be left out if only one runs.",
            autocompletion=complete.runnable_models,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="End all engines, `mllama serve` included.")] = False,
    debug: Debug = False,
) -> None:
    """End running engines and free their memory. Answers that are being given may end first."""
    from mllama_cli.remote.stop import stop as end
    from mllama_cli.terminal.console import Terminal

    terminal = Terminal()
    if model is not None and everything:
        raise UsageError("MODEL and --all are mutually exclusive", "Leave one of them out.")
    for address, name in _chosen(terminal, model, everything):
        end(address)
        terminal.note(f"Stopped {name}.")


def _chosen(terminal: "Terminal", model: str | None, everything: bool) -> "list[tuple[Address, str]]":
    """Return the engines to end and what they are called. Raise UsageError or ModelNotFoundError."""
    from mllama_cli.remote.engines import running

    if everything:
        addresses = running()
        if not addresses:
            terminal.note("No engine is running.")
        return [(address, _name(address)) for address in addresses]
    found = list(_engines(terminal))
    names = list(dict.fromkeys(info.about.name for _, info in found))
    if model is not None:
        chosen = [(address, info.about.name) for address, info in found if _is_called(model, info)]
        if not chosen:
            there = f"Running: {', '.join(names)}." if names else "No engine is running."
            raise ModelNotFoundError(f"No running engine holds {model}", there)
        return chosen
    if not found:
        raise UsageError("No engine is running", "`mllama ps` lists those that are.")
    if len(found) > 1:
        raise UsageError(f"{len(found)} engines are running: {', '.join(names)}", "Name one, or use --all.")
    return [(found[0][0], names[0])]


def _engines(terminal: "Terminal") -> "list[tuple[Address, EngineInfo]]":
    """Return the engines that say what they are; a note on stderr says why another does not."""
    from mllama_cli.remote.answerer import ask_about
    from mllama_cli.remote.engines import running

    found = []
    for address in running():
        try:
            found.append((address, ask_about(address)))
        except BusyError as error:
            terminal.note(f"{error.message} ({address}).")
        except MllamaError as error:
            terminal.note(f"{error.message}. {error.hint}".strip())
    return found


def _name(address: "Address") -> str:
    from mllama_cli.remote.answerer import ask_about

    try:
        return ask_about(address).about.name
    except MllamaError:
        return f"the engine on {address}"


def _is_called(model: str, info: "EngineInfo") -> bool:
    """Return whether a model's name means what an engine holds: by the same name, or in the same folder."""
    from mllama_cli.hub.catalog import resolve
    from mllama_cli.system.files import resolved

    if model == info.about.name:
        return True
    try:
        return str(resolved(resolve(model))) == info.about.path
    except MllamaError:
        return False


def _row(address: "Address", info: "EngineInfo") -> tuple[str, ...]:
    busy = f"{info.running}/{info.slots}" + (f" +{info.waiting}" if info.waiting else "")
    ends = "never" if info.idle_left is None else shown_duration(info.idle_left)
    about = info.about
    return (
        about.name,
        about.device,
        info.quantization,
        human_size(info.memory),
        busy,
        ends,
        _STARTED_BY[info.background],
        info.address or str(address),
    )


def _record(address: "Address", info: "EngineInfo") -> dict[str, Any]:
    about = info.about
    return {
        "name": about.name,
        "path": about.path,
        "device": about.device,
        "dtype": about.dtype,
        "quantization": info.quantization,
        "memory": info.memory,
        "slots": info.slots,
        "running": info.running,
        "waiting": info.waiting,
        "idle_left": info.idle_left,
        "started_by": _STARTED_BY[info.background],
        "address": info.address,
        "socket": str(address),
        "pid": info.pid,
        "version": info.version,
    }
