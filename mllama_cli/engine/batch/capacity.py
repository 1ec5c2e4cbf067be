"""How many requests are answered at once."""

import torch

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.device import HEADROOM, free_bytes
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.weights.memory import image_bytes, position_bytes, prefill_bytes, vision_bytes

MAX_SLOTS = {"cpu": 32, "cuda": 64}
"""More slots than this gain next to nothing: encoding images and prefilling, which slots do not speed up, takes the
time then."""

EXPECTED_NEW_TOKENS = 512
"""An answer is expected to have at most this many tokens, whatever it is allowed to have."""

MAX_PREFILL_BATCH = 8
"""Requests prefilled together at most, so that their encoded images do not pile up."""

IMAGE_CACHE_BYTES = 2**30
"""Encoded images that no slot uses any more are kept up to this many bytes, and to a 16th of what is free."""


def automatic_slots(model: LoadedModel, prompt: int, images: int, max_tokens: int) -> int:
    """Return the slots that fit besides the weights if all requests have ``prompt`` tokens and ``images`` images."""
    free, length = free_bytes(model.device), prompt + min(max_tokens, EXPECTED_NEW_TOKENS)
    most, itemsize = MAX_SLOTS[model.device.type], model.dtype.itemsize
    return slots_that_fit(model.config, itemsize, free, model.prefill_chunk, length, images, most)


def slots_that_fit(
    config: MllamaConfig, itemsize: int, free: int, chunk: int, length: int, images: int, most: int
) -> int:
    """Return the slots of ``length`` positions and ``images`` images that fit into ``free`` bytes: from 1 to ``most``.

    Besides them there is room for the work, for the images of a prefill batch, also side by side for their prefill, and
    for those in the image cache.
    """
    free -= HEADROOM + working_bytes(config, itemsize, chunk) + min(IMAGE_CACHE_BYTES, free // 16)
    each, admitted = slot_bytes(config, itemsize, length, images), slot_bytes(config, itemsize, 0, images)
    for slots in range(most, 1, -1):
        together = max_prefill_batch(slots)
        encoded = min(slots, MAX_PREFILL_BATCH) + (together if together > 1 else 0)
        if slots * each + encoded * admitted <= free:
            return slots
    return 1


def max_prefill_batch(slots: int) -> int:
    """Return how many are prefilled together at most: not more than half of the slots, or all would wait for one."""
    return min(MAX_PREFILL_BATCH, max(1, slots // 2))


def image_cache_bytes(device: torch.device) -> int:
    """Return what encoded images may take that no slot uses any more."""
    return min(IMAGE_CACHE_BYTES, free_bytes(device) // 16)


def slot_bytes(config: MllamaConfig, itemsize: int, length: int, images: int) -> int:
    """Bytes of one slot: keys and values of ``length`` positions and of ``images`` images with the most tiles."""
    logits = 2 * 4 * config.text_config.vocab_size
    return length * position_bytes(config, itemsize) + images * image_bytes(config, itemsize) + logits


def working_bytes(config: MllamaConfig, itemsize: int, chunk: int) -> int:
    """Bytes that a prefill chunk and the vision tower need while they run, on a GPU at the same time."""
    return prefill_bytes(config, itemsize, chunk, chunk) + vision_bytes(config, itemsize)
