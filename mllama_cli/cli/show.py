"""`mllama show`: describe a model."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllama_cli.cli import complete
from mllama_cli.cli.common import print_json
from mllama_cli.cli.options import AsJson, Debug
from mllama_cli.core.text import human_size, shown

if TYPE_CHECKING:
    from mllama_cli.hub.inspect import Inspection
    from mllama_cli.terminal.console import Terminal


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, an installed model, an alias or a hub id.",
            autocompletion=complete.runnable_models,
        ),
    ],
    template: Annotated[bool, typer.Option("--template", help="Print only the chat template.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a model's architecture, parameters, memory, chat template and defaults, or what a LoRA adapter changes."""
    from mllama_cli.checkpoint.files import is_adapter
    from mllama_cli.core.errors import TemplateError
    from mllama_cli.hub.catalog import resolve
    from mllama_cli.hub.inspect import inspect
    from mllama_cli.processing.chat_template import ChatTemplate
    from mllama_cli.system.files import expanded, is_file
    from mllama_cli.terminal.console import Terminal
    from mllama_cli.terminal.tables import print_facts

    terminal = Terminal()
    if is_adapter(path := expanded(name)) and not is_file(path / "config.json"):
        _show_adapter(terminal, path, as_json)
        return
    folder = resolve(name)
    chat_template = ChatTemplate.from_pretrained(folder)
    if template:
        if chat_template is None:
            raise TemplateError(f"{name} has no chat template: it is a base model", "Use it with `mllama chat --raw`.")
        terminal.result(chat_template.source.rstrip("\n") + "\n")
        return
    found = inspect(folder)
    if as_json:
        _require_readable(folder)
        print_json(terminal, _record(name, found, chat_template is not None))
        return
    print_facts(terminal, _rows(name, found, chat_template is not None))
    _require_readable(folder)


def _require_readable(folder: Path) -> None:
    """Raise CheckpointError for weights that cannot be loaded. Comes last, since it imports torch."""
    from mllama_cli.quantization.opening import open_network

    open_network(folder)


def _show_adapter(terminal: "Terminal", folder: Path, as_json: bool) -> None:
    from mllama_cli.checkpoint.adapters.adapter import Adapter
    from mllama_cli.terminal.tables import print_facts

    found = Adapter(folder)
    settings, size = found.settings, found.file.stat().st_size
    modules = {name.rpartition(".")[0] for name in found.changes}
    vision = sum(".vision_model." in f".{name}" or "multi_modal_projector" in name for name in modules)
    kinds = [word for word, uses in (("rslora", settings.uses_root), ("DoRA", settings.uses_dora)) if uses]
    record = {
        "path": str(folder),
        "kind": ", ".join(["LoRA adapter", *kinds]),
        "base": settings.base,
        "ranks": found.ranks,
        "alpha": settings.alpha,
        "modules": {"text": len(modules) - vision, "vision": vision},
        "size": size,
    }
    if as_json:
        print_json(terminal, record)
        return
    ranks = ", ".join(map(str, found.ranks)) or "none"
    print_facts(
        terminal,
        [
            ("path", folder),
            ("kind", f"{record['kind']}, rank {ranks}, alpha {settings.alpha:g}"),
            ("changes", f"{len(modules)} layers ({len(modules) - vision} text, {vision} vision)"),
            ("made for", settings.base or "a model that it does not name"),
            ("weights", f"{human_size(size)} on disk"),
            ("use", f"mllama chat -m {settings.base or 'MODEL'} --adapter {folder}"),
        ],
    )


def _human_count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"


def _rows(name: str, found: "Inspection", has_template: bool) -> list[tuple[str, str | Path]]:
    from mllama_cli.engine.parallel.plan import possible_ranks

    text, vision = found.config.text_config, found.config.vision_config
    cross = len(text.cross_attention_layers)
    generation = found.generation
    rows: list[tuple[str, str | Path]] = [
        ("name", name),
        ("path", found.path),
        ("kind", found.kind),
        ("parameters", f"{_human_count(found.total)} ({_by_part(found)})"),
        (
            "language model",
            f"{text.num_hidden_layers} layers ({cross} cross-attention), hidden {text.hidden_size}, "
            f"{text.num_attention_heads} heads ({text.num_key_value_heads} key/value), vocabulary {text.vocab_size}",
        ),
        ("context", f"{text.max_position_embeddings} tokens"),
    ]
    if vision is not None:
        rows.append(
            (
                "vision",
                f"{vision.num_hidden_layers} local and {vision.num_global_layers} global layers, "
                f"hidden {vision.hidden_size}, "
                f"{vision.max_num_tiles} tiles of {vision.image_size} x {vision.image_size} pixels",
            )
        )
    rows.append(("weights", f"{human_size(found.size)} on disk: {_formats(found)}"))
    rows += _quantization(found)
    sampling = (
        f"temperature {generation.temperature}, top-p {generation.top_p}"
        + (f", top-k {generation.top_k}" if generation.top_k else "")
        if generation.do_sample
        else "greedy"
    )
    rows += [
        ("template", "yes (--template prints it)" if has_template else "none: a base model, use chat --raw"),
        ("defaults", sampling),
        ("stop tokens", _named_tokens(found.path, generation.eos_token_id or text.eos_token_id)),
    ]
    if counts := possible_ranks(text):
        rows.append(("several GPUs", f"{' or '.join(map(str, counts))} can share it"))
    if found.license:
        rows.append(("licence", found.license))
    return rows


def _named_tokens(folder: Path, ids: Iterable[int]) -> str:
    """Return tokens with their ids; the ids alone if the folder has no tokenizer that can be read."""
    from mllama_cli.core.errors import CheckpointError
    from mllama_cli.processing.tokenizer_file import read_tokenizer

    try:
        tokenizer = read_tokenizer(folder / "tokenizer.json")
    except CheckpointError:
        return ", ".join(map(str, ids))
    names = {id_: tokenizer.id_to_token(id_) if 0 <= id_ < 2**32 else None for id_ in ids}
    return ", ".join(f"{name} ({id_})" if name else str(id_) for id_, name in names.items())


def _by_part(found: "Inspection") -> str:
    return ", ".join(f"{part} {_human_count(count)}" for part, count in found.parameters.items() if count)


def _formats(found: "Inspection") -> str:
    if not found.forms:
        return ", ".join(sorted(found.stored))
    return ", ".join(f"{kind} {_human_count(count)}" for kind, count in sorted(found.stored.items()))


def _quantization(found: "Inspection") -> list[tuple[str, str | Path]]:
    """Return the rows on the formats of the weights: as stored, and as they will be in memory."""
    memory = ", ".join(f"{dtype} {human_size(size)}" for dtype, size in found.memory().items())
    if not found.forms:
        rows: list[tuple[str, str | Path]] = [("memory", memory)]
        if (method := found.quantization.get("quant_method")) is not None:
            rows.insert(0, ("quantization", f"none, though config.json says {shown(method)[1:-1]}"))
        return rows
    labels = ", ".join(sorted({form.label for form in found.forms.values()}))
    rows = [("quantization", f"{labels}: {found.bits_per_weight:.2f} bits per weight ({_bits_by_part(found)})")]
    ways = []
    if any(form.ours for form in found.forms.values()):
        ways.append("packed as they are")
    packings = [(form.label, form.packing) for form in found.forms.values() if not form.ours]
    if exact := {f"int{packing.bits}" for _, packing in packings if packing and packing.code == "int"}:
        ways.append(f"repacked exactly ({', '.join(sorted(exact))})")
    if codes := {label for label, packing in packings if packing and packing.code != "int"}:
        ways.append(f"as they are ({', '.join(sorted(codes))}), {human_size(sum(found.bytes_of.values()))}")
    if any(packing is None or packing.code != "int" for _, packing in packings):
        where = "on a CPU without a C++ compiler " if codes and all(packing for _, packing in packings) else ""
        ways.append(f"{where}as 16 bit where that fits, else as int8; choose with --quantize int8 or int4")
        rows.append(("memory", memory))
    rows.append(("read", "; ".join(ways)))
    groups = found.quantization.get("config_groups")
    described = groups.values() if isinstance(groups, dict) else ()
    if any(isinstance(group, dict) and group.get("input_activations") for group in described):
        rows.append(("activations", "not rounded, though config.json says so: weights alone are quantized"))
    return rows


def _bits_by_part(found: "Inspection") -> str:
    """Return the bits per weight of each part, scales included, and its formats."""
    parts = []
    for part, count in found.parameters.items():
        if count:
            kinds = "/".join(sorted(found.packed[part]))
            parts.append(f"{part} {8 * found.bytes_of[part] / count:.2f}" + (f" {kinds}" if kinds else ""))
    return ", ".join(parts)


def _record(name: str, found: "Inspection", has_template: bool) -> dict[str, Any]:
    import dataclasses

    return {
        "name": name,
        "path": str(found.path),
        "kind": found.kind,
        "parameters": {**found.parameters, "total": found.total},
        "stored": found.stored,
        "size": found.size,
        "memory": found.memory(),
        "chat_template": has_template,
        "license": found.license,
        "config": dataclasses.asdict(found.config),
        "generation": dataclasses.asdict(found.generation),
        "quantization": found.quantization,
        "packed": {part: dict(kinds) for part, kinds in found.packed.items()},
        "bits_per_weight": found.bits_per_weight,
    }
