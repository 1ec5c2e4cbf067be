"""Choose the number of slots and the size of prefill batches."""

from dataclasses import dataclass

from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.engine.device import HEADROOM, free_bytes
from mllama_cli.engine.forward import MAX_PREFILL_BATCH
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.weights.memory import image_bytes, pass_bytes, position_bytes, prefill_bytes, vision_bytes
from mllama_cli.model.cache import grown

MAX_SLOTS = {"cpu": 32, "cuda": 128}
"""More slots gain almost nothing, since encoding images and prefilling take most of the time then.

On an H200 the steps of a caption of 64 tokens take 10.1 ms with 64 slots and 6.9 ms with 128, its image 42 ms.
"""

MAX_SERVED_SLOTS = {"cpu": 32, "cuda": 64}
"""A server has fewer: with more each answer's tokens come more slowly."""

EXPECTED_NEW_TOKENS = 512
"""Tokens of an answer for which memory is reserved, even if more are allowed, unless it streams."""

IMAGE_CACHE_BYTES = 2**30
"""Maximum bytes of cached images that no slot uses any more."""

UNLIMITED = 2**62

PASS_SHARE = 16
"""Passes of prompts are captured only if they hold up to this part of the memory that is free."""

SERVED_CACHE_SHARE = 4
"""A server keeps unused images up to this part of the memory that is free: questions about them may follow."""


@dataclass(frozen=True)
class Memory:
    """The bytes that requests may take, and what each part of a request takes.

    Attributes:
        slots: the number of slots.
        limit: for keys and values, kept ones included.
        kept_images: maximum for encoded images that no request uses.
        position_bytes: of one position in the self KV cache.
        image_bytes: of one image with the most tiles.
        logit_bytes: of one slot's logits.
        captures_passes: whether ``limit`` leaves room for captured passes of prompts.
    """

    slots: int
    limit: int
    kept_images: int
    position_bytes: int
    image_bytes: int
    logit_bytes: int
    captures_passes: bool

    @classmethod
    def of(cls, model: LoadedModel, slots: int, *, serves: bool) -> "Memory":
        free, itemsize, image_itemsize = free_bytes(model.device), model.dtype.itemsize, model.image_itemsize
        working = working_bytes(model.config, itemsize, model.prefill_chunk, image_itemsize)
        passes = kept_pass_bytes(model.config, itemsize, free) if model.device.type == "cuda" else 0
        limit = max(0, free - HEADROOM - working - passes)
        return cls(
            slots,
            limit,
            limit // SERVED_CACHE_SHARE if serves else image_cache_bytes(free),
            position_bytes(model.config, itemsize),
            image_bytes(model.config, image_itemsize),
            logit_bytes(model.config),
            passes > 0,
        )

    def text_bytes(self, length: int) -> int:
        """Return the bytes of a slot with a cache of ``length`` positions."""
        return grown(length, 0, UNLIMITED) * self.position_bytes + self.logit_bytes

    def shortage(self, length: int) -> MemoryShortageError:
        return MemoryShortageError(
            f"There is not enough memory to answer this, even alone: its prompt has {length} tokens",
            "Close other programs, ask with fewer images or less text, or use a smaller --dtype.",
        )


def automatic_slots(model: LoadedModel, prompt: int, images: int, max_tokens: int) -> int:
    """Return the number of slots that fit if all requests have ``prompt`` tokens and ``images`` images."""
    free, length = free_bytes(model.device), prompt + min(max_tokens, EXPECTED_NEW_TOKENS)
    most, itemsize, chunk = MAX_SLOTS[model.device.type], model.dtype.itemsize, model.prefill_chunk
    if model.device.type == "cuda":
        free -= kept_pass_bytes(model.config, itemsize, free)
    return slots_that_fit(model.config, itemsize, free, chunk, length, images, most, model.image_itemsize)


def slots_that_fit(
    config: MllamaConfig,
    itemsize: int,
    free: int,
    chunk: int,
    length: int,
    images: int,
    most: int,
    image_itemsize: int | None = None,
) -> int:
    """Return the number, 1 to ``most``, of slots of ``length`` positions and ``images`` images in ``free`` bytes.

    ``image_itemsize`` is that of each number kept of an image (default: ``itemsize``).
    There is also room for activations, the image cache, and the images of a prefill batch, once each and once
    concatenated.
    """
    kept = image_itemsize or itemsize
    free -= HEADROOM + working_bytes(config, itemsize, chunk, kept) + image_cache_bytes(free)
    each, admitted = slot_bytes(config, itemsize, length, images, kept), slot_bytes(config, itemsize, 0, images, kept)
    for slots in range(most, 1, -1):
        together = max_prefill_batch(slots)
        encoded = min(slots, MAX_PREFILL_BATCH) + (together if together > 1 else 0)
        if slots * each + encoded * admitted <= free:
            return slots
    return 1


def max_prefill_batch(slots: int) -> int:
    """Return the maximum requests in a prefill: at most half of the slots, so that the others keep stepping."""
    return min(MAX_PREFILL_BATCH, max(1, slots // 2))


def image_cache_bytes(free: int) -> int:
    """Return the limit of the image cache with ``free`` bytes."""
    return min(IMAGE_CACHE_BYTES, free // 16)


def slot_bytes(config: MllamaConfig, itemsize: int, length: int, images: int, image_itemsize: int | None = None) -> int:
    """Return the bytes of a slot with ``length`` positions and ``images`` images with the most tiles."""
    text = length * position_bytes(config, itemsize) + logit_bytes(config)
    return text + images * image_bytes(config, image_itemsize or itemsize)


def working_bytes(config: MllamaConfig, itemsize: int, chunk: int, image_itemsize: int | None = None) -> int:
    """Return the bytes of activations: on a GPU a prefill chunk and the vision tower run at the same time.

    An image that is kept with another ``image_itemsize`` is there with ``itemsize`` first, after the vision tower.
    """
    unrounded = image_bytes(config, itemsize) if image_itemsize not in (None, itemsize) else 0
    return prefill_bytes(config, itemsize, chunk, chunk) + max(vision_bytes(config, itemsize), unrounded)


def kept_pass_bytes(config: MllamaConfig, itemsize: int, free: int) -> int:
    """Return the bytes that captured passes hold with ``free`` bytes: none where they would take too many of them."""
    held = pass_bytes(config, itemsize)
    return held if held * PASS_SHARE <= free else 0


def logit_bytes(config: MllamaConfig) -> int:
    """Return the bytes of a slot's logits, twice in float32."""
    return 2 * 4 * config.text_config.vocab_size
