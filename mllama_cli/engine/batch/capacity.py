"""How many conversations fit side by side."""

from typing import TYPE_CHECKING

import torch

from mllama_cli.engine.device import HEADROOM, free_bytes
from mllama_cli.engine.weights.memory import picture_bytes, position_bytes, prefill_bytes, tower_bytes

if TYPE_CHECKING:
    from mllama_cli.core.config import MllamaConfig
    from mllama_cli.engine.engine import Engine

MOST = {"cpu": 32, "cuda": 64}
"""More slots than this gain next to nothing: encoding pictures and prefilling, which slots do not speed up, is what
takes the time then."""

USUAL = 512
"""An answer is expected to have at most this many tokens, whatever it is allowed to have."""

NEWCOMERS = 8
"""Prefilled together at most, so that their encoded pictures do not pile up."""

REMEMBERED = 2**30
"""Encoded pictures that no slot uses any more are kept up to this many bytes, and to a 16th of what is free."""


def automatic_slots(engine: "Engine", prompt: int, images: int, max_tokens: int) -> int:
    """Slots that fit beside the weights, if all requests are like this one: ``prompt`` tokens, ``images`` pictures."""
    free, length = free_bytes(engine.device), prompt + min(max_tokens, USUAL)
    return slots_that_fit(
        engine.config, engine.dtype.itemsize, free, engine.prefill_rows, length, images, MOST[engine.device.type]
    )


def slots_that_fit(
    config: "MllamaConfig", itemsize: int, free: int, rows: int, length: int, images: int, most: int
) -> int:
    """Slots of ``length`` positions and ``images`` pictures that fit into ``free`` bytes: at least 1, at most ``most``.

    Beside them fit the work, the pictures of newcomers, also side by side for their prefill, and those remembered.
    """
    free -= HEADROOM + working_bytes(config, itemsize, rows) + min(REMEMBERED, free // 16)
    each, newcomer = slot_bytes(config, itemsize, length, images), slot_bytes(config, itemsize, 0, images)
    for n in range(most, 1, -1):
        together = newcomers_at_once(n)
        pictures = min(n, NEWCOMERS) + (together if together > 1 else 0)
        if n * each + pictures * newcomer <= free:
            return n
    return 1


def newcomers_at_once(slots: int) -> int:
    """How many are prefilled together at most: not more than half of the slots, or all would wait for one."""
    return min(NEWCOMERS, max(1, slots // 2))


def remembered_bytes(device: torch.device) -> int:
    """What pictures may take that no slot uses any more."""
    return min(REMEMBERED, free_bytes(device) // 16)


def slot_bytes(config: "MllamaConfig", itemsize: int, length: int, images: int) -> int:
    """Bytes of one slot: keys and values of ``length`` positions and of ``images`` pictures of the most tiles."""
    logits = 2 * 4 * config.text_config.vocab_size
    return length * position_bytes(config, itemsize) + images * picture_bytes(config, itemsize) + logits


def working_bytes(config: "MllamaConfig", itemsize: int, rows: int) -> int:
    """Bytes that a prefill chunk and the vision tower need while they run, on a GPU at the same time."""
    return prefill_bytes(config, itemsize, rows, rows) + tower_bytes(config, itemsize)
