"""The language model: Llama self-attention layers with gated cross-attention layers between them."""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.kernels.ops import apply_rope, upload
from mllama_cli.kernels.sdpa import has_flash_attention
from mllama_cli.model.cache import CrossCache, CrossKVCache, KVCache, SelfCache, attend_new_rows
from mllama_cli.model.image_kv import LayerKV
from mllama_cli.model.layers import (
    Embedding,
    Linear,
    MllamaTextMLP,
    MllamaTextRMSNorm,
    heads,
    result_of,
)
from mllama_cli.model.rope import inverse_frequencies, rotation
from mllama_cli.model.visibility import CrossView


@dataclass(frozen=True)
class SelfAttentionContext:
    """The inputs that all self-attention layers of a forward pass share."""

    positions: Tensor
    cos: Tensor
    sin: Tensor
    cache: SelfCache | None
    mask: Tensor | None
    """bool [B or 1, 1, L, S]; None if causal attention needs none, or each conversation has a single row."""


class _TextAttention(nn.Module):
    """The projections that self- and cross-attention have in common."""

    def __init__(self, config: MllamaTextConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner, kv = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, inner, bias=False)
        self.k_proj = Linear(config.hidden_size, kv, bias=False)
        self.v_proj = Linear(config.hidden_size, kv, bias=False)
        self.o_proj = Linear(inner, config.hidden_size, bias=False)


class MllamaTextSelfAttention(_TextAttention):
    def forward(self, x: Tensor, cache_index: int, context: SelfAttentionContext, residual: Tensor) -> Tensor:
        """Attend from normed rows x [B, L, hidden]; return attention + ``residual``, which may be written over."""
        q = apply_rope(heads(self.q_proj(x), self.head_dim), context.cos, context.sin)
        k = apply_rope(heads(self.k_proj(x), self.head_dim), context.cos, context.sin)
        v = heads(self.v_proj(x), self.head_dim)
        if context.cache is not None:
            out = context.cache.attend(cache_index, q, k, v, context.positions, context.mask)
        else:
            out = attend_new_rows(q, k, v, context.mask)
        result: Tensor = self.o_proj.forward_add(out, residual)
        return result


class MllamaSelfAttentionDecoderLayer(nn.Module):
    """Llama's layer, whose keys and values are at ``cache_index`` of the self KV cache."""

    def __init__(self, config: MllamaTextConfig, cache_index: int) -> None:
        super().__init__()
        self.cache_index = cache_index
        self.self_attn = MllamaTextSelfAttention(config)
        self.mlp = MllamaTextMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = MllamaTextRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = MllamaTextRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: SelfAttentionContext) -> Tensor:
        """Return the next hidden states; without gradients x may be written over."""
        x = self.self_attn(self.input_layernorm(x), self.cache_index, context, x)
        result: Tensor = self.mlp(self.post_attention_layernorm(x), x)
        return result


class MllamaTextCrossAttention(_TextAttention):
    def __init__(self, config: MllamaTextConfig) -> None:
        super().__init__(config)
        self.q_norm = MllamaTextRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = MllamaTextRMSNorm(self.head_dim, config.rms_norm_eps)

    def keys_values(self, states: Tensor) -> LayerKV:
        """Turn projected vision tokens [B, tokens, hidden] into keys and values [B, kv_heads, tokens, head_dim]."""
        keys = self.k_norm(self.k_proj(states).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        return keys.contiguous(), heads(self.v_proj(states), self.head_dim).contiguous()

    def forward(self, x: Tensor, cross: CrossCache, cache_index: int, view: CrossView) -> Tensor:
        q = self.q_norm(heads(self.q_proj(x), self.head_dim))
        result: Tensor = self.o_proj(cross.attend(cache_index, q, view))
        return result


class MllamaCrossAttentionDecoderLayer(nn.Module):
    """Gated cross-attention to the images, whose keys and values are at ``cache_index`` of the cross KV cache.

    Rows that see no image pass unchanged: Meta's reference multiplies both branches by 0 there.
    """

    def __init__(self, config: MllamaTextConfig, cache_index: int) -> None:
        super().__init__()
        self.cache_index = cache_index
        self.cross_attn = MllamaTextCrossAttention(config)
        self.mlp = MllamaTextMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = MllamaTextRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = MllamaTextRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, cross: CrossCache, view: CrossView) -> Tensor:
        # Every row from the first image token on sees some image, so the rows that see none are a prefix.
        first = view.segments[0].row_start if view.segments else 0
        seeing = x[:, first:] if first else x
        attention = self.cross_attn(self.input_layernorm(seeing), cross, self.cache_index, view)
        seeing = self.gated(seeing, attention, view.row_mask)
        return torch.cat((x[:, :first], seeing), dim=1) if first else seeing

    def gated(self, x: Tensor, attention: Tensor, row_mask: Tensor | None) -> Tensor:
        """Add both branches, times their gates and ``row_mask`` [B, L, 1], to x."""
        x = x + self._gated(self.cross_attn_attn_gate, attention, row_mask)
        mlp = self.mlp(self.post_attention_layernorm(x))
        return x + self._gated(self.cross_attn_mlp_gate, mlp, row_mask)

    @staticmethod
    def _gated(gate: Tensor, branch: Tensor, row_mask: Tensor | None) -> Tensor:
        branch = gate.tanh() * branch
        return branch if row_mask is None else branch * row_mask


class MllamaTextModel(nn.Module):
    """Token ids to final hidden states."""

    def __init__(self, config: MllamaTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            MllamaCrossAttentionDecoderLayer(config, config.cross_attention_layers.index(index))
            if index in config.cross_attention_layers
            else MllamaSelfAttentionDecoderLayer(config, config.self_attention_layers.index(index))
            for index in range(config.num_hidden_layers)
        )
        self.norm = MllamaTextRMSNorm(config.hidden_size, config.rms_norm_eps)
        self._frequencies: Tensor | None = None

    def frequencies(self, device: torch.device) -> Tensor:
        # Not a buffer, which a network built on the meta device would have to recompute after loading.
        if self._frequencies is None or self._frequencies.device != device:
            config = self.config
            with torch.device("cpu"):
                table = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
            self._frequencies = table.to(device)
        return self._frequencies

    def cross_keys_values(self, states: Tensor) -> list[LayerKV]:
        """Turn projected vision tokens [B, tokens, hidden] into keys and values for each cross-attention layer."""
        result = []
        for index in self.config.cross_attention_layers:
            layer = self.layers[index]
            assert isinstance(layer, MllamaCrossAttentionDecoderLayer)
            result.append(layer.cross_attn.keys_values(states))
        return result

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        cross: CrossKVCache | None = None,
        view: CrossView | None = None,
    ) -> Tensor:
        """Run the rows ``input_ids`` [B, L], which follow what ``cache`` holds -> normed hidden states [B, L, hidden].

        The cache is filled but not advanced, since only the caller knows which rows of a padded batch count. Without a
        cache (in training) nothing is kept. Without a ``view`` the cross-attention layers are skipped, as the model
        does for text alone.
        """
        return result_of(self.steps(input_ids, cache, cross, view))

    def steps(
        self, input_ids: Tensor, cache: KVCache | None, cross: CrossCache | None, view: CrossView | None
    ) -> Generator[None, None, Tensor]:
        """Do as ``forward`` does, and yield after each layer. Other work must leave ``cache`` alone meanwhile."""
        length = input_ids.shape[1]
        device = input_ids.device
        first = cache.lengths[0] if cache is not None and cache.uniform else 0
        positions = torch.arange(first, first + length, device=device)[None]
        if cache is not None:
            cache.reserve(max(cache.lengths) + length)
            positions = positions.expand(len(cache.lengths), -1)
            if not cache.uniform:
                positions = positions + upload(torch.tensor(cache.lengths), device)[:, None]
        context = self.context(positions, cache, self._mask(cache, positions))
        return (yield from self.run_steps(input_ids, context, cross, view))

    def context(self, positions: Tensor, cache: SelfCache | None, mask: Tensor | None) -> SelfAttentionContext:
        """Return the self-attention layers' context for rows at ``positions`` [B or 1, L]."""
        cos, sin = rotation(positions, self.frequencies(positions.device))
        return SelfAttentionContext(positions, cos, sin, cache, mask)

    def run(
        self,
        input_ids: Tensor,
        context: SelfAttentionContext,
        cross: CrossCache | None = None,
        view: CrossView | None = None,
    ) -> Tensor:
        """Do as ``forward`` with the caller's positions and mask, such as those of short texts packed into one row."""
        return result_of(self.run_steps(input_ids, context, cross, view))

    def run_steps(
        self,
        input_ids: Tensor,
        context: SelfAttentionContext,
        cross: CrossCache | None = None,
        view: CrossView | None = None,
    ) -> Generator[None, None, Tensor]:
        """Do as ``run`` does, and yield after each layer."""
        x = self.embed_tokens(input_ids).to(self.norm.weight.dtype)  # on a CPU, matrices may be stored in another
        for layer in self.layers:
            if not isinstance(layer, MllamaCrossAttentionDecoderLayer):
                x = layer(x, context)
            elif view is not None and cross is not None:
                x = layer(x, cross, view)
            yield
        result: Tensor = self.norm(x)
        return result

    @staticmethod
    def _mask(cache: KVCache | None, positions: Tensor) -> Tensor | None:
        length = positions.shape[1]
        if cache is None or (cache.uniform and (length == 1 or cache.lengths[0] == 0 or _ends_causally(cache))):
            return None
        rows = positions[:1] if cache.uniform else positions
        keys = torch.arange(max(cache.lengths) + length, device=positions.device)
        return keys <= rows[:, None, :, None]


def _ends_causally(cache: KVCache) -> bool:
    """Return whether rows that follow cached ones can attend without a mask."""
    keys = cache.keys[0]
    return has_flash_attention(keys.device, keys.dtype, keys.shape[-1]) and not torch.is_grad_enabled()


class MllamaForCausalLM(nn.Module):
    """The language model with its output layer; also a whole text-only checkpoint."""

    def __init__(self, config: MllamaTextConfig) -> None:
        super().__init__()
        self.config = config
        self.model = MllamaTextModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def language_model(self) -> MllamaTextModel:
        return self.model

    def forward(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits [B, L, vocab_size] of token ids [B, L]."""
        hidden = self.model(input_ids, cache)
        if cache is not None:
            cache.advance([input_ids.shape[1]] * input_ids.shape[0])
        result: Tensor = self.lm_head(hidden)
        return result
