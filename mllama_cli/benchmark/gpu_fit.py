"""Compute from a model's shape, without weights, how it would run on a GPU of some size."""

from dataclasses import dataclass

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.batch.capacity import EXPECTED_NEW_TOKENS, MAX_SLOTS, kept_pass_bytes, slots_that_fit
from mllama_cli.engine.weights.memory import choose_prefill_chunk, longest_context
from mllama_cli.engine.weights.offload import OffloadPlan, plan_for_shape, sizes_of_shape

GPU_MIB = {8: 8188, 12: 12282, 16: 16376, 24: 24564, 48: 49140, 80: 81559, 141: 143771}
"""MiB reported by GPUs that are sold with this many GB."""

RESERVED_MIB = 500
"""MiB that the CUDA context and a desktop take."""

SHARING_MIB = 512
"""MiB that the libraries take on each GPU to exchange results with others."""

CAPTION_PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Fit:
    """A plan, the tokens of a chat about an image with the most tiles, and the captions made at once.

    ``float8_slots`` are the captions at once with ``--image-kv fp8``.
    """

    plan: OffloadPlan
    context: int
    slots: int
    float8_slots: int


def usable_bytes(gb: int, gpus: int = 1) -> int:
    """Return the free bytes of a GPU of ``gb`` GB, a key of GPU_MIB, alone or as one of several that share a model."""
    return (GPU_MIB[gb] - RESERVED_MIB - (SHARING_MIB if gpus > 1 else 0)) * 2**20


def fit(config: MllamaConfig, quantize: str | None, free: int, itemsize: int = 2, gpus: int = 1) -> Fit | None:
    """Return how a model of this shape would run in ``free`` bytes of each of its GPUs; None if it does not fit."""
    plan = plan_for_shape(config, quantize, free, itemsize, gpus)
    if plan is None:
        return None
    free -= sizes_of_shape(config, quantize, itemsize, gpus).on_gpu(plan)
    config = config.shared_by(gpus)
    chunk = choose_prefill_chunk(config, itemsize, "cuda", free)
    length = CAPTION_PROMPT_TOKENS + EXPECTED_NEW_TOKENS
    for_slots = free - kept_pass_bytes(config, itemsize, free)
    slots, float8_slots = (
        slots_that_fit(config, itemsize, for_slots, chunk, length, 1, MAX_SLOTS["cuda"], kept) for kept in (itemsize, 1)
    )
    return Fit(plan, longest_context(config, itemsize, free, chunk), slots, float8_slots)
