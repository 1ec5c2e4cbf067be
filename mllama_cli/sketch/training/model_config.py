"""The built-in model's configuration."""

from typing import Any

from mllama_cli.sketch.training.vocabulary import VOCABULARY_SIZE

TILE_SIZE = 140
BOS, END, PAD, EOM, EOT = (VOCABULARY_SIZE - 8 + index for index in (0, 1, 2, 5, 6))
"""Special tokens come at the end of the vocabulary, in the order of ``vocabulary.SPECIAL_TOKENS``."""


def config(
    *,
    tile: int = TILE_SIZE,
    vision_size: int = 160,
    vision_layers: int = 6,
    global_layers: int = 2,
    text_size: int = 192,
    text_inner: int = 384,
    layers: int = 7,
    cross_layers: tuple[int, ...] = (1, 3, 5),
) -> dict[str, Any]:
    """Return the built-in model's config.json."""
    heads = 6
    features = [vision_layers // 3, 2 * vision_layers // 3]
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": VOCABULARY_SIZE,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "mllama_text_model",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": text_size,
            "intermediate_size": text_inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "cross_attention_layers": list(cross_layers),
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "default"},
            "hidden_act": "silu",
            "dropout": 0,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "use_cache": True,
            "bos_token_id": BOS,
            "eos_token_id": [END, EOM, EOT],
            "pad_token_id": PAD,
            "torch_dtype": "bfloat16",
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_size": vision_size,
            "intermediate_size": 4 * vision_size,
            "attention_heads": vision_size // 32,
            "num_hidden_layers": vision_layers,
            "num_global_layers": global_layers,
            "intermediate_layers_indices": features,
            "vision_output_dim": vision_size * (1 + len(features)),
            "image_size": tile,
            "patch_size": 14,
            "num_channels": 3,
            "max_num_tiles": 4,
            "norm_eps": 1e-5,
            "hidden_act": "gelu",
            "initializer_range": 0.02,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            "torch_dtype": "bfloat16",
        },
    }
