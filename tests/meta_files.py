"""Write a model as Meta does: consolidated.pth in one part or several, params.json and tokenizer.model."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllama_cli.checkpoint.meta.names import EXTRA_TOKENS, PATCHES, TABLES, TOKENS, meta_names
from mllama_cli.core.config import MllamaConfig

CUT_INPUTS = re.compile(r"(attention\.wo|feed_forward\.w2|attn\.wo|mlp\.c_proj)\.weight|tok_embeddings|learnable_emb")
CUT_OUTPUTS = re.compile(
    r"(attention\.w[qkv]|feed_forward\.w[13]|attn\.w[qkv]|mlp\.c_fc)\.(weight|bias)|output\.weight|conv1\._linear"
    r"|vision_projection"
)


def write_meta_files(
    folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], *, shards: int = 1
) -> Path:
    """Write weights, by our names, of a model whose vocabulary is the 256 bytes and 256 special tokens."""
    folder.mkdir(parents=True)
    whole = in_metas_layout(weights, MllamaConfig.from_dict(config))
    for index in range(shards):
        name = f"consolidated.{index:02d}.pth" if shards > 1 else "consolidated.pth"
        torch.save({name: _part(name, each, shards, index) for name, each in whole.items()}, folder / name)
    text, vision = config["text_config"], config["vision_config"]
    cross = len(text["cross_attention_layers"])
    params = {
        "dim": text["hidden_size"],
        "n_layers": text["num_hidden_layers"] - cross,
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "vocab_size": text["vocab_size"],
        "ffn_dim_multiplier": 1.3,
        "multiple_of": 1024,
        "norm_eps": text["rms_norm_eps"],
        "rope_theta": text["rope_theta"],
        "use_scaled_rope": True,
        "vision_chunk_size": vision["image_size"],
        "vision_max_num_chunks": vision["max_num_tiles"],
        "vision_num_cross_attention_layers": cross,
    }
    (folder / "params.json").write_text(json.dumps(params))
    lines = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "tokenizer.model").write_text("".join(lines))
    return folder


def in_metas_layout(weights: Mapping[str, Tensor], config: MllamaConfig) -> dict[str, Tensor]:
    """Return weights under Meta's names and in its order of rows."""
    text, vision = config.text_config, config.vision_config
    assert vision is not None
    found: dict[str, Tensor] = {"text_model.rope.freqs": torch.zeros(4)}
    for name, theirs in meta_names(config).items():
        tensor = weights[name].detach()
        if theirs == TOKENS:
            found[EXTRA_TOKENS] = tensor[text.vocab_size :].clone()
            tensor = tensor[: text.vocab_size]
        elif theirs == PATCHES:
            tensor = tensor.flatten(1)
        elif theirs in TABLES:
            tiles = vision.max_num_tiles
            by_ratio = tensor.view(len(tensor), tiles, -1, vision.hidden_size)
            tensor = torch.zeros(tiles, tiles, *by_ratio.shape[2:], dtype=tensor.dtype)
            for number, (high, wide) in enumerate(vision.supported_aspect_ratios, start=1):
                tensor[:high, :wide] = by_ratio[number, : high * wide].unflatten(0, (high, wide))
        elif "language_model" in name and name.endswith((".self_attn.q_proj.weight", ".self_attn.k_proj.weight")):
            heads = text.num_attention_heads if ".q_proj." in name else text.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        elif name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate")):
            tensor = tensor.expand(text.hidden_size)  # as Meta's files have it
        found[theirs] = tensor.clone()
    return found


def _part(name: str, tensor: Tensor, shards: int, index: int) -> Tensor:
    if CUT_INPUTS.search(name):
        return tensor.chunk(shards, 1)[index].clone()
    return tensor.chunk(shards, 0)[index].clone() if CUT_OUTPUTS.search(name) else tensor
