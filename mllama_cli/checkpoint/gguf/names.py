"""Map our names of weights to those in GGUF files, of which there are two generations.

| file                                        | vision layers                                      |
|---------------------------------------------|----------------------------------------------------|
| ollama 0.4 to 0.6: text, and a projector    | attn_out, ln1, ln2, ffn_down is fc1, ffn_up is fc2 |
| ollama 0.7 to 0.24: one file                | attn_output, attn_norm, ffn_norm, and the reverse  |
"""

from collections.abc import Iterator

_LAYER = {
    "self_attn.q_proj": ("attn_q",),
    "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",),
    "self_attn.o_proj": ("attn_output", "attn_out"),
    "input_layernorm": ("attn_norm", "ln1"),
    "post_attention_layernorm": ("ffn_norm", "ln2"),
}
_TEXT_LAYER = {
    "mlp.gate_proj": ("ffn_gate",),
    "mlp.up_proj": ("ffn_up",),
    "mlp.down_proj": ("ffn_down",),
    "cross_attn.q_proj": ("cross_attn_q_proj",),
    "cross_attn.k_proj": ("cross_attn_k_proj",),
    "cross_attn.v_proj": ("cross_attn_v_proj",),
    "cross_attn.o_proj": ("cross_attn_o_proj",),
    "cross_attn.q_norm": ("cross_attn_q_norm",),
    "cross_attn.k_norm": ("cross_attn_k_norm",),
}
_VISION_LAYER = {
    "mlp.fc1": ("ffn_up", "ffn_down"),
    "mlp.fc2": ("ffn_down", "ffn_up"),
    "gate_attn": ("attn_gate",),
    "gate_ffn": ("ffn_gate",),
}
_SINGLE = {
    "lm_head.weight": "output.weight",
    "model.language_model.embed_tokens.weight": "token_embd.weight",
    "model.language_model.norm.weight": "output_norm.weight",
    "model.multi_modal_projector.weight": "mm.0.weight",
    "model.multi_modal_projector.bias": "mm.0.bias",
    "model.vision_model.class_embedding": "v.class_embd",
    "model.vision_model.patch_embedding.weight": "v.patch_embd.weight",
    "model.vision_model.gated_positional_embedding.embedding": "v.position_embd.weight",
    "model.vision_model.gated_positional_embedding.tile_embedding.weight": "v.tile_position_embd.weight",
    "model.vision_model.gated_positional_embedding.gate": "v.tile_position_embd.gate",
    "model.vision_model.pre_tile_positional_embedding.embedding.weight": "v.pre_tile_position_embd.weight",
    "model.vision_model.pre_tile_positional_embedding.gate": "v.pre_tile_position_embd.gate",
    "model.vision_model.post_tile_positional_embedding.embedding.weight": "v.post_tile_position_embd.weight",
    "model.vision_model.post_tile_positional_embedding.gate": "v.post_tile_position_embd.gate",
    "model.vision_model.layernorm_pre.weight": "v.pre_ln.weight",
    "model.vision_model.layernorm_pre.bias": "v.pre_ln.bias",
    "model.vision_model.layernorm_post.weight": "v.post_ln.weight",
    "model.vision_model.layernorm_post.bias": "v.post_ln.bias",
}
_STACKS = (
    ("model.language_model.layers.", "blk.", _LAYER | _TEXT_LAYER),
    ("model.vision_model.transformer.layers.", "v.blk.", _LAYER | _VISION_LAYER),
    ("model.vision_model.global_transformer.layers.", "v.global.blk.", _LAYER | _VISION_LAYER),
)

ROPE_FACTORS = "rope_freqs.weight"
DERIVED = (ROPE_FACTORS, "v.position_embd.gate")
"""Tensors that follow from the config or from others: the gate is 1 minus that of the tiles' table."""


def gguf_names(name: str) -> Iterator[str]:
    """Yield what files may call our weight ``name``, the newer generation's name first."""
    if name in _SINGLE:
        yield _SINGLE[name]
        return
    for ours, theirs, kinds in _STACKS:
        if not name.startswith(ours):
            continue
        number, _, rest = name.removeprefix(ours).partition(".")
        module, _, end = rest.rpartition(".")
        if module in kinds and end in ("weight", "bias"):
            yield from (f"{theirs}{number}.{kind}.{end}" for kind in kinds[module])
        else:  # a gate
            yield from (f"{theirs}{number}.{kind}" for kind in kinds.get(rest, (rest,)))
