"""Summarize a plan in a few lines, one for each kind of layer and scheme."""

import re
from dataclasses import dataclass

from mllama_cli.quantization.plan import QuantizePlan, Unit
from mllama_cli.quantization.policy import short


@dataclass(frozen=True)
class SummaryLine:
    """Tensors of one kind: ``layers`` is their name for users, sizes are in bytes."""

    layers: str
    scheme: str
    tensors: int
    before: int
    after: int


def summarize(plan: QuantizePlan) -> list[SummaryLine]:
    """Return the lines, quantized layers first."""
    kinds: dict[tuple[str, str], list[Unit]] = {}
    for unit in plan.units():
        scheme = str(unit.scheme) if unit.scheme else f"as it is ({unit.source.info.dtype})"
        kinds.setdefault((_kind(unit, plan), scheme), []).append(unit)
    lines = [
        SummaryLine(
            layers=_numbered(kind, inside),
            scheme=scheme,
            tensors=len(inside),
            before=sum(unit.source.nbytes for unit in inside),
            after=sum(unit.nbytes for unit in inside),
        )
        for (kind, scheme), inside in kinds.items()
    ]
    return sorted(lines, key=lambda line: (line.scheme.startswith("as"), line.scheme, -line.before))


def _kind(unit: Unit, plan: QuantizePlan) -> str:
    name = short(unit.name)
    for tower, called in (("vision_model", "vision tower"), ("multi_modal_projector", "projector")):
        if name.startswith(tower) and unit.scheme is None:
            return called
    if unit.scheme is not None or unit.name.removesuffix(".weight") in plan.layers.kept:
        return re.sub(r"^layers\.\d+\.", "", name.removesuffix(".weight"))
    return "embeddings" if "embed_tokens" in name else "norms and gates"


def _numbered(kind: str, units: list[Unit]) -> str:
    """Return the kind with the numbers of its layers if they are few."""
    numbers = [found[1] for unit in units if (found := re.match(r"layers\.(\d+)\.", short(unit.name)))]
    return f"{kind} of {', '.join(numbers)}" if 0 < len(numbers) <= 3 and kind != "norms and gates" else kind
