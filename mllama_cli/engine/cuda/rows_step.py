"""One pass of many rows, each a token with caches of its own, by the network's layers but with our attention kernel.

The kernel reads only the valid positions of each row's caches, where torch's attention reads all up to the longest; it
also rotates, normalises and stores the new position.
"""

import torch
from torch import Tensor

from mllama_cli.engine.cuda.pass_shapes import ROW_GROUP
from mllama_cli.engine.cuda.step import State
from mllama_cli.engine.forward import Network
from mllama_cli.kernels.cuda.attention_api import Scratch, decode_attention, splits_for, store_rows, tokens_together
from mllama_cli.model.rope import rotation
from mllama_cli.model.text import MllamaCrossAttentionDecoderLayer, MllamaSelfAttentionDecoderLayer

CROSS_SPLITS = 2
"""Minimum splits: with one program for each head, many keys would leave multiprocessors idle at the end."""


class RowsStep:
    """A step of the first ``rows`` rows of ``state``; ``sees`` bool [rows of the state] says which see an image.

    With ``ends``, int64 indices of rows, rows may be successive positions of the same conversation, in groups of
    ROW_GROUP that are of one, and only those of ``ends`` get logits.
    """

    def __init__(
        self,
        network: Network,
        state: State,
        sees: Tensor,
        rows: int,
        *,
        with_images: bool,
        ends: Tensor | None = None,
    ) -> None:
        config, device, dtype = network.language_model.config, state.tokens.device, state.logits.dtype
        self.network, self.state, self.rows, self.with_images = network, state.first(rows), rows, with_images
        self.sees, self.ends = sees[:rows], ends
        self.kv_heads, self.dim = config.num_key_value_heads, config.head_dim
        heads = config.num_attention_heads
        self.tokens = min(ROW_GROUP, tokens_together(heads, self.kv_heads, dtype)) if ends is not None else 1
        self.self_scratch = Scratch(rows, heads, self.dim, splits_for(rows, self.kv_heads), device)
        self.frequencies = network.language_model.frequencies(device)
        if with_images:
            splits = splits_for(rows // self.tokens, self.kv_heads, CROSS_SPLITS)
            self.cross_scratch = Scratch(rows, heads, self.dim, splits, device)
        self.attended = torch.empty(rows, 1, heads * self.dim, dtype=dtype, device=device)

    def run(self) -> Tensor:
        """Return logits [rows or ends, vocab_size] after the tokens; store their keys and values in the caches.

        The state does not change.
        """
        model, state = self.network.language_model, self.state
        cos, sin = (half[:, 0, 0, : self.dim // 2] for half in rotation(state.positions[:, None], self.frequencies))
        rope = torch.stack((cos, sin), dim=1)
        row_mask = self.sees[:, None, None]
        # -1 where logits were not finite: that answer has failed, which the host does not know yet.
        x = model.embed_tokens(state.tokens.clamp(min=0)[:, None]).to(model.norm.weight.dtype)
        for layer in model.layers:
            if isinstance(layer, MllamaSelfAttentionDecoderLayer):
                x = self._self_layer(layer, x, rope)
            elif isinstance(layer, MllamaCrossAttentionDecoderLayer) and self.with_images:
                x = layer.gated(x, self._cross_attention(layer, x), row_mask)
        last = x if self.ends is None else x[self.ends]
        logits: Tensor = self.network.lm_head(model.norm(last)[:, 0])
        return logits

    def _self_layer(self, layer: MllamaSelfAttentionDecoderLayer, x: Tensor, rope: Tensor) -> Tensor:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (project(normed).flatten(0, 1) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
        caches, index = self.state.self_attn, layer.cache_index
        if self.ends is not None:
            store_rows(
                k, v, rope, caches, self.state.positions, cache_index=index, kv_heads=self.kv_heads, dim=self.dim
            )
        decode_attention(
            q, self.attended[:, 0], self.self_scratch, caches, self.state.positions, cache_index=index,
            kv_heads=self.kv_heads, dim=self.dim, key=k, value=v, rotation=rope, stored=self.ends is not None,
        )  # fmt: skip
        x = attention.o_proj.forward_add(self.attended, x)
        result: Tensor = layer.mlp(layer.post_attention_layernorm(x), x)
        return result

    def _cross_attention(self, layer: MllamaCrossAttentionDecoderLayer, x: Tensor) -> Tensor:
        attention = layer.cross_attn
        decode_attention(
            attention.q_proj(layer.input_layernorm(x)).flatten(0, 1), self.attended[:, 0], self.cross_scratch,
            self.state.cross_attn, self.state.ranges, cache_index=layer.cache_index, kv_heads=self.kv_heads,
            dim=self.dim, tokens=self.tokens, norm=attention.q_norm.weight.detach(), eps=attention.q_norm.eps,
        )  # fmt: skip
        result: Tensor = attention.o_proj(self.attended)
        return result
