"""What fits on which card, as in docs/performance.md: ``python -m tests.benchmarks.card_table``. It needs no GPU."""

from mllama_cli.benchmark.gpu_fit import GPU_MIB, Fit, fit, usable_bytes
from mllama_cli.engine.weights.offload import OffloadPlan
from mllama_cli.engine.weights.shapes import SHAPES

FORMATS = (None, "int8", "int4")
MARKS = {
    OffloadPlan(): "",
    OffloadPlan(embeddings=True): " E",
    OffloadPlan(vision=True): " V",
    OffloadPlan(embeddings=True, vision=True): " E V",
}


def cell(found: Fit | None) -> str:
    """Context and captions, E and V for what is offloaded."""
    return f"{found.context // 100 * 100:,} / {found.slots}{MARKS[found.plan]}" if found else "no"


def table() -> str:
    """Markdown. Contexts are rounded down to hundreds."""
    columns = [(shape, form) for shape in SHAPES for form in FORMATS]
    rows = [["card", *(f"{shape.upper()}, {form or 'bfloat16'}" for shape, form in columns)]]
    rows.append(["---"] * (len(columns) + 1))
    for card in GPU_MIB:
        fits = [fit(SHAPES[shape], form, usable_bytes(card)) for shape, form in columns]
        rows.append([f"{card} GB", *map(cell, fits)])
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
    print(table(), short_table(), sep="\n\n")
