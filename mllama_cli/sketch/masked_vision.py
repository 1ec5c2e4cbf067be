"""The vision tower over pictures with different numbers of tiles at once, in Meta's masked form.

In training one call over all pictures costs less than the tower's own exact savings, which take a call for each number
of tiles. A test holds the two together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.model.layers import heads
from mllama_cli.model.vision import MllamaVisionEncoderLayer, MllamaVisionModel


def masked_features(tower: MllamaVisionModel, pixel_values: Tensor, aspect_ratio_ids: Tensor, used: Tensor) -> Tensor:
    """Features of all tiles [N, 4, tokens, features] of pixels [N, 4, 3, T, T]; bool [N, 4] says which are ``used``."""
    config = tower.config
    tokens, padded = config.tokens_per_tile, config.padded_tokens_per_tile
    x = tower.embed_tiles(pixel_values, aspect_ratio_ids)
    x = F.pad(x, (0, 0, 0, padded - tokens)).flatten(1, 2)
    padding = ~used[:, :, None].expand(-1, -1, padded).clone()
    padding[:, :, tokens:] = True
    padding = padding.flatten(1)
    bias = torch.zeros(len(x), 1, padding.shape[1], padding.shape[1], dtype=x.dtype, device=x.device)
    bias.masked_fill_((padding[:, :, None] & padding[:, None, :])[:, None], -torch.inf)

    intermediate = []
    for index, layer in enumerate(tower.transformer.layers):
        if index in config.intermediate_layers_indices:
            intermediate.append(x)
        x = _layer(layer, x, bias)  # type: ignore[arg-type]
    x = tower.layernorm_post(x).unflatten(1, (-1, padded))
    x = (x + tower.post_tile_positional_embedding(aspect_ratio_ids, config.max_num_tiles)).flatten(1, 2)
    for layer in tower.global_transformer.layers:
        x = _layer(layer, x, bias)  # type: ignore[arg-type]
    joined = torch.cat((x, torch.stack(intermediate, dim=-1).flatten(-2)), dim=-1)
    result: Tensor = joined.unflatten(1, (-1, padded))[:, :, :tokens]
    return result


def _layer(layer: MllamaVisionEncoderLayer, x: Tensor, bias: Tensor) -> Tensor:
    attention = layer.self_attn
    normed = layer.input_layernorm(x)
    q, k, v = (
        heads(project(normed), attention.head_dim) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    out = attention.o_proj(out.transpose(1, 2).flatten(2))
    x = x + (layer.gate_attn.tanh() * out if layer.gated else out)
    mlp = layer.mlp(layer.post_attention_layernorm(x))
    result: Tensor = x + (layer.gate_ffn.tanh() * mlp if layer.gated else mlp)
    return result
