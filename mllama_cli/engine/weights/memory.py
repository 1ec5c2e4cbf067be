"""Estimate the bytes of caches and activations, and choose chunk sizes for the memory that is left."""

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.cuda.pass_shapes import PASS_TOKENS
from mllama_cli.engine.device import HEADROOM
from mllama_cli.engine.forward import PREFILL_CHUNK

MIN_CONTEXT = 4096
"""A model for which fewer positions of a conversation fit counts as too large."""

GPU_PREFILL_CHUNKS = (4096, 1024)
"""Prompt tokens for each forward pass on a GPU: many keep it busy, and a pass still takes only a tenth of a second."""


def position_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Return the bytes of keys and values of one position in all self-attention layers."""
    text = config.text_config
    return 2 * text.num_key_value_heads * text.head_dim * itemsize * len(text.self_attention_layers)


def image_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Return the bytes of one image with the most tiles in all cross-attention layers."""
    text, vision = config.text_config, config.vision_config
    tokens = vision.max_num_tiles * vision.tokens_per_tile if vision else 0
    return 2 * text.num_key_value_heads * text.head_dim * itemsize * len(text.cross_attention_layers) * tokens


def vision_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Return the bytes of the vision tower's activations for one image with the most tiles."""
    vision = config.vision_config
    if vision is None:
        return 0
    tokens = vision.max_num_tiles * vision.padded_tokens_per_tile
    return tokens * (2 * vision.intermediate_size + 8 * vision.hidden_size + 2 * vision.vision_output_dim) * itemsize


def prefill_bytes(config: MllamaConfig, itemsize: int, tokens: int, positions: int) -> int:
    """Return the bytes of activations in a forward pass of ``tokens`` that ends at position ``positions``.

    They include a dequantized matrix and the attention mask for a group of query heads.
    """
    text = config.text_config
    dequantized = text.intermediate_size * text.hidden_size
    activations = tokens * (3 * text.intermediate_size + 8 * text.hidden_size)
    return (dequantized + activations) * itemsize + positions * mask_bytes(config, itemsize, tokens)


def pass_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Return the bytes that captured passes of prompts hold (engine/cuda/passes.py).

    All share the activations of the largest. Each, with an image and without, keeps attention's results for its rows:
    about seven in float32, and the output twice.
    """
    text = config.text_config
    results = text.num_attention_heads * text.head_dim * (7 * 4 + 2 * itemsize)
    return prefill_bytes(config, itemsize, PASS_TOKENS[-1], 0) + sum(PASS_TOKENS) * results


def mask_bytes(config: MllamaConfig, itemsize: int, tokens: int) -> int:
    """Return the bytes of the attention mask for one key position, as bool and as converted by attention."""
    text = config.text_config
    return tokens * (text.num_attention_heads // text.num_key_value_heads) * (1 + itemsize)


def min_working_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Return the bytes needed besides the weights for MIN_CONTEXT positions, one image and the smallest chunk.

    The vision tower and the language model run one after the other.
    """
    caches = MIN_CONTEXT * position_bytes(config, itemsize) + image_bytes(config, itemsize)
    prefill = prefill_bytes(config, itemsize, GPU_PREFILL_CHUNKS[-1], MIN_CONTEXT)
    return HEADROOM + caches + max(vision_bytes(config, itemsize), prefill)


def choose_prefill_chunk(config: MllamaConfig, itemsize: int, device: str, free: int) -> int:
    """Return the prompt tokens to feed at once with ``free`` bytes besides the weights.

    Half of what the shortest context leaves is kept for longer caches.
    """
    if device != "cuda":
        return PREFILL_CHUNK
    caches = MIN_CONTEXT * position_bytes(config, itemsize) + image_bytes(config, itemsize)
    available = (free - HEADROOM - caches) // 2
    fitting = (n for n in GPU_PREFILL_CHUNKS if prefill_bytes(config, itemsize, n, MIN_CONTEXT) <= available)
    return next(fitting, GPU_PREFILL_CHUNKS[-1])


def longest_context(config: MllamaConfig, itemsize: int, free: int, chunk: int) -> int:
    """Return the positions that fit besides the weights and one image, at most the model's maximum."""
    available, each = free - HEADROOM - image_bytes(config, itemsize), position_bytes(config, itemsize)
    during_encoding = (available - vision_bytes(config, itemsize)) // each
    in_prefill = prefill_bytes(config, itemsize, chunk, 0)
    during_prefill = (available - in_prefill) // (each + mask_bytes(config, itemsize, chunk))
    return max(0, min(during_encoding, during_prefill, config.text_config.max_position_embeddings))
