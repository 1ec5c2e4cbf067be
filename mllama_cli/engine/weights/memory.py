"""Bytes that work takes beside the weights, and how much work is done at once where memory is small."""

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.device import HEADROOM
from mllama_cli.engine.forward import CHUNK

MODEST = 4096
"""Positions of a conversation that must fit, or a model counts as too large."""

GPU_ROWS = (4096, 1024)
"""Prompt rows per forward pass on a GPU: matrix units want many, and even so a pass takes a tenth of a second."""


def position_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Keys and values of one position in all self-attention layers."""
    text = config.text_config
    return 2 * text.num_key_value_heads * text.head_dim * itemsize * len(text.self_attention_layers)


def picture_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Keys and values of one picture of the most tiles in all cross-attention layers."""
    text, vision = config.text_config, config.vision_config
    tokens = vision.max_num_tiles * vision.tokens_per_tile if vision else 0
    return 2 * text.num_key_value_heads * text.head_dim * itemsize * len(text.cross_attention_layers) * tokens


def tower_bytes(config: MllamaConfig, itemsize: int) -> int:
    """Activations of the vision tower with one picture of the most tiles."""
    vision = config.vision_config
    if vision is None:
        return 0
    rows = vision.max_num_tiles * vision.padded_tokens_per_tile
    return rows * (2 * vision.intermediate_size + 8 * vision.hidden_size + 2 * vision.vision_output_dim) * itemsize


def prefill_bytes(config: MllamaConfig, itemsize: int, rows: int, positions: int) -> int:
    """Activations of one forward pass of ``rows`` that ends at position ``positions``.

    With what a packed matrix is unpacked to for its product, and the attention mask of a key head's group of queries.
    """
    text = config.text_config
    unpacked = text.intermediate_size * text.hidden_size
    activations = rows * (3 * text.intermediate_size + 8 * text.hidden_size)
    return (unpacked + activations) * itemsize + positions * mask_bytes(config, itemsize, rows)


def mask_bytes(config: MllamaConfig, itemsize: int, rows: int) -> int:
    """The mask over one position: bool, and what attention turns it into."""
    text = config.text_config
    return rows * (text.num_attention_heads // text.num_key_value_heads) * (1 + itemsize)


def least_work(config: MllamaConfig, itemsize: int) -> int:
    """What must be free beside the weights: a modest conversation about one picture of the most tiles, in small steps.

    The vision tower and the language model run one after the other.
    """
    caches = MODEST * position_bytes(config, itemsize) + picture_bytes(config, itemsize)
    work = max(tower_bytes(config, itemsize), prefill_bytes(config, itemsize, GPU_ROWS[-1], MODEST))
    return HEADROOM + caches + work


def prefill_rows(config: MllamaConfig, itemsize: int, device: str, free: int) -> int:
    """Rows of a prompt that go through the network at once with ``free`` bytes beside the weights.

    Half of what is left is for longer caches.
    """
    if device != "cuda":
        return CHUNK
    caches = MODEST * position_bytes(config, itemsize) + picture_bytes(config, itemsize)
    room = (free - HEADROOM - caches) // 2
    return next((n for n in GPU_ROWS if prefill_bytes(config, itemsize, n, MODEST) <= room), GPU_ROWS[-1])


def longest_context(config: MllamaConfig, itemsize: int, free: int, rows: int) -> int:
    """Positions that fit into ``free`` bytes beside the weights, in a conversation about one picture of the most tiles.

    At most what the model can read.
    """
    room, each = free - HEADROOM - picture_bytes(config, itemsize), position_bytes(config, itemsize)
    beside_tower = (room - tower_bytes(config, itemsize)) // each
    in_prefill = prefill_bytes(config, itemsize, rows, 0)
    beside_prefill = (room - in_prefill) // (each + mask_bytes(config, itemsize, rows))
    return max(0, min(beside_tower, beside_prefill, config.text_config.max_position_embeddings))
