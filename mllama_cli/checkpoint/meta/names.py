"""Map our names of weights to those in Meta's files.

Meta numbers self-attention and cross-attention layers apart; ours are one sequence, in which each cross-attention layer
comes before the self-attention layer that it was inserted at.
"""

from collections.abc import Iterator

from mllama_cli.core.config import MllamaConfig

TOKENS, EXTRA_TOKENS = "text_model.tok_embeddings.weight", "text_model.learnable_embedding.weight"
"""Together the rows of embed_tokens."""

_TEXT_LAYER = {
    "attention.wq.weight": "{attention}.q_proj.weight",
    "attention.wk.weight": "{attention}.k_proj.weight",
    "attention.wv.weight": "{attention}.v_proj.weight",
    "attention.wo.weight": "{attention}.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_CROSS_LAYER = {
    "attention.q_norm.weight": "cross_attn.q_norm.weight",
    "attention.k_norm.weight": "cross_attn.k_norm.weight",
    "gate_attn": "cross_attn_attn_gate",
    "gate_ffwd": "cross_attn_mlp_gate",
}
_VISION_LAYER = {
    "attn.wq.weight": "self_attn.q_proj.weight",
    "attn.wk.weight": "self_attn.k_proj.weight",
    "attn.wv.weight": "self_attn.v_proj.weight",
    "attn.wo.weight": "self_attn.o_proj.weight",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
    "ln_1.weight": "input_layernorm.weight",
    "ln_1.bias": "input_layernorm.bias",
    "ln_2.weight": "post_attention_layernorm.weight",
    "ln_2.bias": "post_attention_layernorm.bias",
}
_GLOBAL_LAYER = {"gate_attn": "gate_attn", "gate_ffn": "gate_ffn"}
ENCODER = "vision_model.vision_encoder."
PATCHES = f"{ENCODER}conv1._linear.weight"
_OURS = "model.vision_model."
TABLES = {
    f"{ENCODER}gated_positional_embedding": f"{_OURS}gated_positional_embedding.tile_embedding.weight",
    f"{ENCODER}pre_tile_pos_embed.embedding": f"{_OURS}pre_tile_positional_embedding.embedding.weight",
    f"{ENCODER}post_tile_pos_embed.embedding": f"{_OURS}post_tile_positional_embedding.embedding.weight",
}
"""Tables by row and column of a tile, where ours are by aspect ratio and number of the tile."""
_SINGLE = {
    "text_model.norm.weight": "model.language_model.norm.weight",
    "text_model.output.weight": "lm_head.weight",
    PATCHES: f"{_OURS}patch_embedding.weight",
    f"{ENCODER}class_embedding": f"{_OURS}class_embedding",
    f"{ENCODER}positional_embedding": f"{_OURS}gated_positional_embedding.embedding",
    f"{ENCODER}gated_positional_embedding_gate": f"{_OURS}gated_positional_embedding.gate",
    f"{ENCODER}pre_tile_pos_embed.gate": f"{_OURS}pre_tile_positional_embedding.gate",
    f"{ENCODER}post_tile_pos_embed.gate": f"{_OURS}post_tile_positional_embedding.gate",
    f"{ENCODER}ln_pre.weight": f"{_OURS}layernorm_pre.weight",
    f"{ENCODER}ln_pre.bias": f"{_OURS}layernorm_pre.bias",
    f"{ENCODER}ln_post.weight": f"{_OURS}layernorm_post.weight",
    f"{ENCODER}ln_post.bias": f"{_OURS}layernorm_post.bias",
    "vision_model.vision_projection.weight": "model.multi_modal_projector.weight",
    "vision_model.vision_projection.bias": "model.multi_modal_projector.bias",
    TOKENS: "model.language_model.embed_tokens.weight",
    **TABLES,
}
DERIVED = ("text_model.rope.freqs", "rope.freqs")
"""Tables that are computed."""


def cross_attention_layers(own: int, cross: int) -> tuple[int, ...]:
    """Return the numbers, in one sequence, of ``cross`` layers among ``own`` self-attention layers.

    >>> cross_attention_layers(32, 8), cross_attention_layers(6, 2)
    ((3, 8, 13, 18, 23, 28, 33, 38), (2, 6))
    """
    step = -(-own // cross) if cross else 1
    followed = sorted(list(range(own))[::-1][::step][:cross])
    return tuple(layer + index for index, layer in enumerate(followed))


def meta_names(config: MllamaConfig) -> dict[str, str]:
    """Return Meta's name of each of our weights; embed_tokens is the first of two."""
    return {ours: theirs for theirs, ours in (*_SINGLE.items(), *_text(config), *_vision(config))}


def _text(config: MllamaConfig) -> Iterator[tuple[str, str]]:
    cross = config.text_config.cross_attention_layers
    own = [number for number in range(config.text_config.num_hidden_layers) if number not in cross]
    for stack, numbers, attention, more in (
        ("layers", own, "self_attn", {}),
        ("cross_attention_layers", cross, "cross_attn", _CROSS_LAYER),
    ):
        for index, number in enumerate(numbers):
            for theirs, ours in {**_TEXT_LAYER, **more}.items():
                inside = ours.format(attention=attention)
                yield f"text_model.{stack}.{index}.{theirs}", f"model.language_model.layers.{number}.{inside}"


def _vision(config: MllamaConfig) -> Iterator[tuple[str, str]]:
    vision = config.vision_config
    assert vision is not None
    for stack, count, more in (
        ("transformer", vision.num_hidden_layers, {}),
        ("global_transformer", vision.num_global_layers, _GLOBAL_LAYER),
    ):
        for index in range(count):
            for theirs, ours in {**_VISION_LAYER, **more}.items():
                yield f"{ENCODER}{stack}.resblocks.{index}.{theirs}", f"{_OURS}{stack}.layers.{index}.{ours}"
