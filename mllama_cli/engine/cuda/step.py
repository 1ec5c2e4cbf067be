"""One decode step as kernels on static buffers: token ids in, logits out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.engine.cuda.operands import Operand, operand
from mllama_cli.engine.forward import Network
from mllama_cli.kernels.cuda.attention import Addresses, Scratch, decode_attention, splits_for
from mllama_cli.kernels.cuda.embed_argmax import embed
from mllama_cli.kernels.cuda.gemv_api import gemv
from mllama_cli.kernels.cuda.layout import interleave, interleave_factor
from mllama_cli.model.text import MllamaCrossAttentionDecoderLayer, MllamaSelfAttentionDecoderLayer


class State:
    """What changes from step to step, in device memory, where a captured step reads it."""

    def __init__(self, network: Network, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        config = network.language_model.config
        self.tokens = torch.zeros(batch, dtype=torch.int32, device=device)
        self.positions = torch.zeros(batch, dtype=torch.int32, device=device)
        self.ranges = torch.zeros(batch, 2, dtype=torch.int32, device=device)
        self.self_attn = Addresses(len(config.self_attention_layers), dtype, device)
        self.cross_attn = Addresses(max(len(config.cross_attention_layers), 1), dtype, device)
        self.logits = torch.zeros(batch, config.vocab_size, dtype=dtype, device=device)


@dataclass(frozen=True)
class _Layer:
    """One layer as the step runs it: attention on ``cache_index`` of its cache, then the MLP."""

    cache_index: int
    cross: bool
    attention_in: list[Operand]
    attention_out: list[Operand]
    mlp_in: list[Operand]
    mlp_out: list[Operand]
    attention_norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None = None
    attention_gate: Tensor | None = None
    mlp_gate: Tensor | None = None


class DecodeStep:
    """The launches of one step. ``with_images`` runs the cross-attention layers too, over ``state.cross_attn``."""

    def __init__(self, network: Network, state: State, *, with_images: bool) -> None:
        model, config = network.language_model, network.language_model.config
        self.state, self.config, self.model = state, config, model
        self.head = [operand(network.lm_head)]
        self.layers: list[_Layer] = []
        for layer in model.layers:
            if isinstance(layer, MllamaSelfAttentionDecoderLayer):
                self.layers.append(_self_layer(layer))
            elif isinstance(layer, MllamaCrossAttentionDecoderLayer) and with_images:
                self.layers.append(_cross_layer(layer))
        self.head_norm = interleave(model.norm.weight.detach(), interleave_factor(self.head[0]))
        batch, device, dtype = state.tokens.shape[0], state.tokens.device, state.logits.dtype
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

        def buffer(size: int) -> Tensor:
            return torch.empty(batch, size, dtype=dtype, device=device)

        self.residual = (buffer(config.hidden_size), buffer(config.hidden_size))
        self.projected = buffer((heads + 2 * kv_heads) * dim)
        self.qkv = self.projected.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
        self.query = self.projected.flatten()[: batch * heads * dim].view(batch, -1)
        self.attended = buffer(heads * dim)
        self.inner = buffer(config.intermediate_size)
        self.rotation = torch.empty(batch, 2, dim // 2, dtype=torch.float32, device=device)
        self.frequencies = model.frequencies(device)
        self.scratch = Scratch(batch, heads, dim, splits_for(batch, kv_heads), device)

    def run(self) -> None:
        """state.tokens at state.positions -> state.logits, their keys and values written into the caches."""
        state, eps = self.state, self.config.rms_norm_eps
        x, y = self.residual
        first = self.layers[0].attention_in if self.layers else self.head
        form = interleave_factor(first[0])
        table = self.model.embed_tokens.weight.detach()
        embed(state.tokens, state.positions, table, self.frequencies, x, self.rotation, form)
        for index, layer in enumerate(self.layers):
            following = self.layers[index + 1].attention_in if index + 1 < len(self.layers) else self.head
            form, next_form = interleave_factor(layer.attention_in[0]), interleave_factor(following[0])
            out_form, mlp_form, down_form = (
                interleave_factor(weights[0]) for weights in (layer.attention_out, layer.mlp_in, layer.mlp_out)
            )
            projected = self.query if layer.cross else self.projected
            gemv(x, layer.attention_in, projected, norm=layer.attention_norm, eps=eps, in_interleave=form)
            query, key, value = (projected, None, None) if layer.cross else self.qkv
            decode_attention(
                query,
                self.attended,
                self.scratch,
                state.cross_attn if layer.cross else state.self_attn,
                state.ranges if layer.cross else state.positions,
                cache_index=layer.cache_index,
                kv_heads=self.config.num_key_value_heads,
                dim=self.config.head_dim,
                key=key,
                value=value,
                rotation=None if layer.cross else self.rotation,
                norm=layer.query_norm,
                eps=eps,
                out_interleave=out_form,
            )
            gemv(
                self.attended, layer.attention_out, y, residual=x, factor=layer.attention_gate,
                in_interleave=out_form, out_interleave=mlp_form, residual_interleave=form,
            )  # fmt: skip
            gemv(
                y, layer.mlp_in, self.inner, norm=layer.mlp_norm, eps=eps, swiglu=True,
                in_interleave=mlp_form, out_interleave=down_form,
            )  # fmt: skip
            gemv(
                self.inner, layer.mlp_out, x, residual=y, factor=layer.mlp_gate,
                in_interleave=down_form, out_interleave=next_form, residual_interleave=mlp_form,
            )  # fmt: skip
        gemv(x, self.head, state.logits, norm=self.head_norm, eps=eps, in_interleave=interleave_factor(self.head[0]))


def _norm(weight: Tensor, reader: Sequence[Operand]) -> Tensor:
    return interleave(weight.detach(), interleave_factor(reader[0]))


def _self_layer(layer: MllamaSelfAttentionDecoderLayer) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    entry = [operand(attention.q_proj), operand(attention.k_proj), operand(attention.v_proj)]
    widen = [operand(mlp.gate_proj), operand(mlp.up_proj)]
    return _Layer(
        cache_index=layer.cache_index,
        cross=False,
        attention_in=entry,
        attention_out=[operand(attention.o_proj)],
        mlp_in=widen,
        mlp_out=[operand(mlp.down_proj)],
        attention_norm=_norm(layer.input_layernorm.weight, entry),
        mlp_norm=_norm(layer.post_attention_layernorm.weight, widen),
    )


def _cross_layer(layer: MllamaCrossAttentionDecoderLayer) -> _Layer:
    attention, mlp = layer.cross_attn, layer.mlp
    entry = [operand(attention.q_proj)]
    widen = [operand(mlp.gate_proj), operand(mlp.up_proj)]
    return _Layer(
        cache_index=layer.cache_index,
        cross=True,
        attention_in=entry,
        attention_out=[operand(attention.o_proj)],
        mlp_in=widen,
        mlp_out=[operand(mlp.down_proj)],
        attention_norm=_norm(layer.input_layernorm.weight, entry),
        mlp_norm=_norm(layer.post_attention_layernorm.weight, widen),
        query_norm=attention.q_norm.weight.detach(),
        attention_gate=layer.cross_attn_attn_gate.detach().float().tanh(),
        mlp_gate=layer.cross_attn_mlp_gate.detach().float().tanh(),
    )
