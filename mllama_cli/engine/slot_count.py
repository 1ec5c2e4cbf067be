"""How many conversations fit side by side, and how to tell that it were too many."""

from typing import TYPE_CHECKING

import psutil
import torch

from mllama_cli.engine.decoder import CHUNK
from mllama_cli.engine.device import HEADROOM
from mllama_cli.engine.picture_encoder import TOGETHER

if TYPE_CHECKING:
    from mllama_cli.engine.load import Engine

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
    free = free_bytes(engine.device)
    free -= HEADROOM + working_bytes(engine) + min(REMEMBERED, free // 16) + NEWCOMERS * slot_bytes(engine, 0, images)
    return max(1, min(MOST[engine.device.type], free // slot_bytes(engine, prompt + min(max_tokens, USUAL), images)))


def remembered_bytes(device: torch.device) -> int:
    """What pictures may take that no slot uses any more."""
    return min(REMEMBERED, free_bytes(device) // 16)


def free_bytes(device: torch.device) -> int:
    """What this process may still allocate there. On a GPU, what torch has cached counts as free."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return int(psutil.virtual_memory().available)


def slot_bytes(engine: "Engine", length: int, images: int) -> int:
    """Bytes of one slot: keys and values of ``length`` positions and of ``images`` pictures of the most tiles."""
    text, vision = engine.config.text_config, engine.config.vision_config
    position = 2 * text.num_key_value_heads * text.head_dim * engine.dtype.itemsize
    tokens = images * vision.max_num_tiles * vision.tokens_per_tile if vision else 0
    logits = 2 * 4 * text.vocab_size
    return position * (length * len(text.self_attention_layers) + tokens * len(text.cross_attention_layers)) + logits


def working_bytes(engine: "Engine") -> int:
    """Bytes that a prefill chunk and the vision tower need while they run, one after the other."""
    text, vision = engine.config.text_config, engine.config.vision_config
    needed = CHUNK * (3 * text.intermediate_size + 8 * text.hidden_size)
    if vision:
        rows = vision.max_num_tiles * vision.padded_tokens_per_tile
        rows *= TOGETHER[engine.device.type]
        width = 2 * vision.intermediate_size + 8 * vision.hidden_size + 2 * vision.vision_output_dim
        needed = max(needed, rows * width)
    return needed * engine.dtype.itemsize


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU (torch raises a plain RuntimeError there)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    marks = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)
