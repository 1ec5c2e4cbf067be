"""One step of a batch's slots, by the network's own layers but with our attention kernel.

The kernel reads only the valid positions of each slot, where torch's attention reads all slots up to the longest; it
also rotates, normalises and stores the new position.
"""

import torch
from torch import Tensor

from mllama_cli.engine.batch.cache import SlotCache
from mllama_cli.engine.forward import Network
from mllama_cli.kernels.cuda.attention import Addresses, Scratch, decode_attention, splits_for
from mllama_cli.model.rope import rotation
from mllama_cli.model.text import MllamaCrossAttentionDecoderLayer, MllamaSelfAttentionDecoderLayer

CROSS_SPLITS = 2
"""Minimum splits: with one program for each head, many keys would leave multiprocessors idle at the end."""


class SlotStep:
    """A step of the first ``rows`` slots on a cache whose tensors do not move."""

    def __init__(self, network: Network, cache: SlotCache, rows: int, *, with_images: bool) -> None:
        config, device, dtype = cache.config, cache.lengths.device, network.language_model.norm.weight.dtype
        self.network, self.cache, self.rows, self.with_images = network, cache, rows, with_images
        self.kv_heads, self.dim = config.num_key_value_heads, config.head_dim
        heads = config.num_attention_heads
        self.self_attn = Addresses(len(cache.keys), dtype, device)
        self.self_attn.fill(cache.keys, cache.values)
        self.self_scratch = Scratch(rows, heads, self.dim, splits_for(rows, self.kv_heads), device)
        self.frequencies = network.language_model.frequencies(device)
        if with_images:
            self.cross_attn = Addresses(len(cache.cross_keys), dtype, device)
            self.cross_attn.fill(cache.cross_keys, cache.cross_values)
            splits = splits_for(rows, self.kv_heads, CROSS_SPLITS)
            self.cross_scratch = Scratch(rows, heads, self.dim, splits, device)
        self.attended = torch.empty(rows, 1, heads * self.dim, dtype=dtype, device=device)

    def run(self, ids: Tensor) -> Tensor:
        """Return logits [rows, vocab_size] after the newest tokens [rows, 1]; store their keys and values.

        Lengths are read on the device and not changed. Reserve the new position first.
        """
        model = self.network.language_model
        lengths = self.cache.lengths[: self.rows]
        positions = lengths.int()
        cos, sin = (half[:, 0, 0, : self.dim // 2] for half in rotation(lengths[:, None], self.frequencies))
        rope = torch.stack((cos, sin), dim=1)
        ranges = row_mask = None
        if self.with_images:
            seen = self.cache.cross_lengths[: self.rows]
            ranges = torch.stack((torch.zeros_like(seen), seen.clamp(min=1)), dim=1).int()
            row_mask = (seen > 0)[:, None, None]
        x = model.embed_tokens(ids).to(model.norm.weight.dtype)
        for layer in model.layers:
            if isinstance(layer, MllamaSelfAttentionDecoderLayer):
                x = self._self_layer(layer, x, positions, rope)
            elif isinstance(layer, MllamaCrossAttentionDecoderLayer) and ranges is not None:
                x = layer.gated(x, self._cross_attention(layer, x, ranges), row_mask)
        logits: Tensor = self.network.lm_head(model.norm(x)[:, 0])
        return logits

    def _self_layer(self, layer: MllamaSelfAttentionDecoderLayer, x: Tensor, positions: Tensor, rope: Tensor) -> Tensor:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (project(normed).flatten(0, 1) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        decode_attention(
            q, self.attended[:, 0], self.self_scratch, self.self_attn, positions,
            cache_index=layer.cache_index, kv_heads=self.kv_heads, dim=self.dim, key=k, value=v, rotation=rope,
        )  # fmt: skip
        x = attention.o_proj.forward_add(self.attended, x)
        result: Tensor = layer.mlp(layer.post_attention_layernorm(x), x)
        return result

    def _cross_attention(self, layer: MllamaCrossAttentionDecoderLayer, x: Tensor, ranges: Tensor) -> Tensor:
        attention = layer.cross_attn
        decode_attention(
            attention.q_proj(layer.input_layernorm(x)).flatten(0, 1), self.attended[:, 0], self.cross_scratch,
            self.cross_attn, ranges, cache_index=layer.cache_index, kv_heads=self.kv_heads, dim=self.dim,
            norm=attention.q_norm.weight.detach(), eps=attention.q_norm.eps,
        )  # fmt: skip
        result: Tensor = attention.o_proj(self.attended)
        return result
