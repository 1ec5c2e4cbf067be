"""`mllama bench`: measure how fast a model runs on this machine."""

from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import load_settings, print_json, resolve_model
from mllama_cli.cli.options import (
    Adapter,
    AsJson,
    BatchComputeOptions,
    ComputeOptions,
    Debug,
    Device,
    Dtype,
    Fast,
    ImageKV,
)

if TYPE_CHECKING:
    from mllama_cli.benchmark.decode import Figure
    from mllama_cli.engine.model import LoadedModel
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder, an installed model, an alias or a hub id (default: the one that chat would use).",
            autocompletion=complete.runnable_models,
        ),
    ] = None,
    random: Annotated[
        str | None,
        typer.Option(
            metavar="11b|90b",
            help="Use random weights in a released model's shape; no download needed.",
            autocompletion=complete.released_shapes,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8|int4",
            help="With --random: quantize the language model's weights.",
            autocompletion=complete.quantizations,
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens to decode (default: 256 on a GPU, 16 on a CPU).")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    adapter: Adapter = None,
    image_kv: ImageKV = None,
    fast: Fast = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure loading, vision, time to first token, prefill and decoding, and compare with memory bandwidth."""
    from mllama_cli.core.errors import UsageError
    from mllama_cli.terminal.answer_view import StatusLine
    from mllama_cli.terminal.console import Terminal

    if model and random:
        raise UsageError("A model and --random are mutually exclusive")
    if quantize and not random:
        raise UsageError("--quantize needs --random: other models are measured as they are stored")
    if adapter and random:
        raise UsageError("--adapter and --random are mutually exclusive")
    given = BatchComputeOptions(model, device, dtype, quantize, fast=fast, adapter=adapter, image_kv=image_kv)
    compute = given.with_defaults(load_settings())
    terminal = Terminal()
    with StatusLine(terminal) as status:
        name, subject, figures = _random(random, compute, status) if random else _loaded(compute, terminal, status)
        from mllama_cli.benchmark.captions import CAPTION_TOKENS, caption_rate
        from mllama_cli.benchmark.decode import SLOW_IMAGE_SECONDS, Figure, benchmark

        for figure in benchmark(subject, tokens=tokens):
            figures.append(figure)
            status.show(f"{figure.name}: {_amount(figure)}")
        slowest = max((figure.value for figure in figures if figure.name.startswith("vision")), default=0)
        if slowest > 1000 * SLOW_IMAGE_SECONDS:
            terminal.note(f"An image takes {slowest / 1000:.0f} s here, so more tiles and captions are not measured")
        elif subject.config.vision_config is not None:
            rate, count, tiles = caption_rate(subject)
            label = f"captions of {CAPTION_TOKENS} tokens, {tiles} tiles, {count} at once"
            label += f", {image_kv} images" if image_kv is not None else ""
            figures.append(Figure(label, rate, "images/s"))
    form = {"quantize": quantize, "adapters": adapter or [], "image_kv": image_kv, "fast": fast}
    record = {"model": name, **_machine(subject), **form}
    if as_json:
        rows = [
            {
                "name": f.name,
                "value": f.value,
                "unit": f.unit,
                "bytes_per_token": f.nbytes,
                "share_of_bandwidth": f.share,
            }
            for f in figures
        ]
        print_json(terminal, {**record, "figures": rows})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(name, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("")
    for figure in figures:
        share = "" if figure.share is None else f"{figure.share:.0%} of memory bandwidth"
        table.add_row(figure.name, _amount(figure), share)
    terminal.out.print(table)
    terminal.note(f"{record['device']}, {record['dtype']}, torch {record['torch']}")
    if subject.decoder.fallback_reason:
        terminal.note(f"Falling back to PyTorch for decoding: {subject.decoder.fallback_reason}")


def _random(shape: str, compute: ComputeOptions, status: "StatusLine") -> "tuple[str, LoadedModel, list[Figure]]":
    status.show("Starting")
    import torch

    from mllama_cli.benchmark.random_network import random_model
    from mllama_cli.core.errors import UsageError
    from mllama_cli.core.events import Notice
    from mllama_cli.engine.device import choose_devices, choose_dtype, make_current
    from mllama_cli.engine.weights.float8_vision import use_float8
    from mllama_cli.engine.weights.shapes import SHAPES

    if shape not in SHAPES:
        raise UsageError(f"Unknown shape {shape!r}", f"Use {' or '.join(SHAPES)}.")
    (device, *others), quantize = choose_devices(compute.device or "auto"), compute.quantize
    make_current(device)
    dtype = choose_dtype(compute.dtype or "auto", torch.bfloat16, 2**33, device)
    model, plan = random_model(
        SHAPES[shape], dtype=dtype, device=device, others=others, quantize=quantize, image_kv=compute.image_kv
    )
    if compute.fast and (note := use_float8(model.network, model.dtype, device)):
        status.event(Notice(note))
    name = f"random {shape}" + (f", {quantize}" if quantize else "") + (f", {plan}" if str(plan) else "")
    return name, model, []


def _loaded(
    compute: ComputeOptions, terminal: "Terminal", status: "StatusLine"
) -> "tuple[str, LoadedModel, list[Figure]]":
    name, folder = resolve_model(compute.model, terminal)
    status.show("Starting")
    import torch

    from mllama_cli.benchmark.decode import Figure

    model = compute.open_engine(folder, name).model
    figures = []
    for part, vision in (("text", False), ("vision", True)):
        if vision and not model.has_vision:
            break
        start = perf_counter()
        for event in model.load(vision=vision):
            status.event(event)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        figures.append(Figure(f"load, {part}", perf_counter() - start, "s"))
    return name, model, figures


def _machine(subject: "LoadedModel") -> dict[str, Any]:
    import torch

    cuda, count = subject.device.type == "cuda", len(subject.devices)
    name = torch.cuda.get_device_name(subject.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": f"{count} x {name}" if count > 1 else name,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def _amount(figure: "Figure") -> str:
    digits = 0 if figure.value >= 1000 else 1 if figure.value >= 10 else 2
    return f"{figure.value:,.{digits}f} {figure.unit}"
