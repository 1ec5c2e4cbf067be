"""What fits on which cards, as in the documentation: ``python -m tests.benchmarks.card_table``. It needs no GPU."""

from mllama_cli.benchmark.gpu_fit import GPU_MIB, Fit, fit, usable_bytes
from mllama_cli.engine.weights.offload import OffloadPlan
from mllama_cli.engine.weights.shapes import SHAPES

FORMATS = (None, "int8", "int4")
SEVERAL = ((2, 12), (2, 16), (2, 24), (4, 24), (2, 48), (4, 48), (2, 80), (2, 141))
"""GPUs that share a model, and the GB of each."""

MARKS = {
    OffloadPlan(): "",
    OffloadPlan(embeddings=True): " E",
    OffloadPlan(vision=True): " V",
    OffloadPlan(embeddings=True, vision=True): " E V",
}


def cell(found: Fit | None) -> str:
    """Context and captions, more of them in 8 bits in parentheses, E and V for what is offloaded."""
    if found is None:
        return "no"
    more = f" ({found.float8_slots})" if found.float8_slots > found.slots else ""
    return f"{found.context // 100 * 100:,} / {found.slots}{more}{MARKS[found.plan]}"


def table() -> str:
    """Markdown of single cards. Contexts are rounded down to hundreds."""
    return _table("card", {f"{card} GB": (1, card) for card in GPU_MIB})


def several_table() -> str:
    """Markdown of cards that share a model."""
    return _table("cards", {f"{gpus} x {card} GB": (gpus, card) for gpus, card in SEVERAL})


def _table(title: str, lines: dict[str, tuple[int, int]]) -> str:
    columns = [(shape, form) for shape in SHAPES for form in FORMATS]
    rows = [[title, *(f"{shape.upper()}, {form or 'bfloat16'}" for shape, form in columns)]]
    rows.append(["---"] * (len(columns) + 1))
    for name, (gpus, card) in lines.items():
        fits = [fit(SHAPES[shape], form, usable_bytes(card, gpus), gpus=gpus) for shape, form in columns]
        rows.append([name, *map(cell, fits)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def short_table() -> str:
    """Markdown for the README: whether a model fits, for the smaller cards."""
    columns = (("11b", None), ("11b", "int8"), ("11b", "int4"), ("90b", "int4"))
    rows = [["GPU memory", *(f"{shape.upper()}, {form or '16 bits'}" for shape, form in columns)]]
    rows.append(["---"] * (len(columns) + 1))
    for card in GPU_MIB:
        if card < 141:
            fits = [fit(SHAPES[shape], form, usable_bytes(card)) for shape, form in columns]
            rows.append([f"{card} GB", *map(short_cell, fits)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def short_cell(found: Fit | None) -> str:
    if found is None:
        return "no"
    return "yes" if found.plan == OffloadPlan() else "yes, partly offloaded"


if __name__ == "__main__":
    print(table(), several_table(), short_table(), sep="\n\n")
