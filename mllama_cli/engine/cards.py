"""What fits on a GPU of so many bytes: computed from a model's shape, without weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch

from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.engine.batch.capacity import MOST, USUAL, slots_that_fit
from mllama_cli.engine.device import gib
from mllama_cli.engine.weights.memory import least_work, longest_context, prefill_rows
from mllama_cli.engine.weights.offload import MemoryPlan, Weights, choose_plan
from mllama_cli.engine.weights.shapes import shaped

CARDS = {8: 8188, 12: 12282, 16: 16376, 24: 24564, 48: 49140, 80: 81559, 141: 143771}
"""MiB that cards report of which the box says so many GB."""

TAKEN = 500
"""MiB of them that the CUDA context and a desktop take."""

QUESTION = 32
"""Tokens of a prompt for a caption."""


@dataclass(frozen=True)
class Fit:
    """``context`` tokens fit in a chat about a picture of the most tiles; ``slots`` captions are made at once."""

    plan: MemoryPlan
    context: int
    slots: int


def usable_bytes(card: int) -> int:
    """Bytes that are free on a card of ``card`` GB, one of CARDS."""
    return (CARDS[card] - TAKEN) * 2**20


@cache
def weights_of(config: MllamaConfig, quantize: str | None, itemsize: int = 2) -> Weights:
    """Bytes of a model's weights; ``quantize`` (int8, int4) packs the language model as while loading."""
    parameters = shaped(config, quantize).named_parameters()
    return Weights.of({n: p.numel() * (itemsize if p.is_floating_point() else p.itemsize) for n, p in parameters})


def fit(config: MllamaConfig, quantize: str | None, free: int, itemsize: int = 2) -> Fit | None:
    """How a model of this shape would run in ``free`` bytes; None if not at all."""
    weights = weights_of(config, quantize, itemsize)
    plan = choose_plan(weights, least_work(config, itemsize), free, embeddings_may_leave=lambda: not tied(config))
    if plan is None:
        return None
    free -= weights.on_gpu(plan)
    rows = prefill_rows(config, itemsize, "cuda", free)
    slots = slots_that_fit(config, itemsize, free, rows, QUESTION + USUAL, 1, MOST["cuda"])
    return Fit(plan, longest_context(config, itemsize, free, rows), slots)


def plan_for(
    config: MllamaConfig,
    sizes: Mapping[str, int],
    text: Mapping[str, int],
    free: int,
    itemsize: int,
    embeddings_may_leave: Callable[[], bool],
) -> MemoryPlan | None:
    """The plan for a model whose parameters have these ``sizes``; None where none fits into ``free`` bytes.

    ``text`` are those that a chat without pictures needs, if nothing else is asked for now, and else none: where they
    fit alone, such a chat is not refused.
    """
    work = least_work(config, itemsize)
    plan = choose_plan(Weights.of(sizes), work, free, embeddings_may_leave=embeddings_may_leave)
    if plan is None and text:
        work = least_work(replace(config, vision_config=None), itemsize)
        plan = choose_plan(Weights.of(text), work, free, embeddings_may_leave=embeddings_may_leave)
        plan = plan and replace(plan, tower_streamed=True)
    return plan


def refusal(
    config: MllamaConfig, weights: Weights, free: int, device: torch.device, dtype: torch.dtype, packed: str
) -> MemoryShortageError:
    """The error for weights that do not fit, with what would. ``packed`` is int8, int4, "stored" or empty."""
    smallest = MemoryPlan(not tied(config), tower_streamed=True)
    needed = weights.on_gpu(smallest) + least_work(config, dtype.itemsize)
    ways = []
    if dtype == torch.float32 and packed != "stored":
        ways.append(("--dtype bfloat16", packed or None, 2))
    if packed in ("", "int8"):
        ways.append(("--quantize int4", "int4", dtype.itemsize))
    hint = "Close other programs that use the GPU, or use --device cpu."
    for option, quantize, itemsize in ways:
        if fit(config, quantize, free, itemsize):
            hint = f"Use {option}, with which it fits, or --device cpu."
            break
    return MemoryShortageError(
        f"The model needs {gib(needed)} of {device} with as much as possible in host memory, but {gib(free)} are free",
        hint,
    )


def tied(config: MllamaConfig) -> bool:
    """Whether the output layer is the embeddings, which then cannot leave the GPU."""
    return config.text_config.tie_word_embeddings
