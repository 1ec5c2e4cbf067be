"""One decode step, from token ids to logits, as kernels on static buffers."""

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.engine.cuda.product import Product, allocate_sums
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.exchange import VocabularyOfRanks
from mllama_cli.kernels.cuda.addresses import Addresses, staged
from mllama_cli.kernels.cuda.attention import Scratch, decode_attention, following_by_heads, splits_for
from mllama_cli.kernels.cuda.embed_argmax import embed
from mllama_cli.kernels.cuda.low_rank import Following
from mllama_cli.model.image_kv import Float8KV, ImageKV
from mllama_cli.model.text import MllamaCrossAttentionDecoderLayer, MllamaSelfAttentionDecoderLayer


class State:
    """Inputs and outputs of a step, in device memory at fixed addresses."""

    def __init__(
        self,
        network: Network,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        outputs: int | None = None,
        *,
        float8: bool = False,
    ) -> None:
        """Make the state of ``batch`` rows, of which ``outputs`` get logits (default: all).

        With ``float8`` they see images as ``Float8KV``.
        """
        config = network.language_model.config
        self.tokens = torch.zeros(batch, dtype=torch.int32, device=device)
        self.positions = torch.zeros(batch, dtype=torch.int32, device=device)
        self.ranges = torch.zeros(batch, 2, dtype=torch.int32, device=device)
        self.self_attn = Addresses(batch, len(config.self_attention_layers), dtype, device)
        layers = max(len(config.cross_attention_layers), 1)
        if float8:
            self.cross_attn = Addresses(batch, layers, torch.uint8, device, kv_heads=config.num_key_value_heads)
        else:
            self.cross_attn = Addresses(batch, layers, dtype, device)
        rows = batch if outputs is None else outputs
        self.logits = torch.zeros(rows, config.vocab_size, dtype=dtype, device=device)
        shape = (1, config.num_key_value_heads, 16, config.head_dim)
        self._unused = {
            each.base.dtype: torch.zeros(shape, dtype=each.base.dtype, device=device)
            for each in (self.self_attn, self.cross_attn)
        }
        """Keys and values of rows that are computed to no use."""
        self.clear(slice(None))

    def first(self, rows: int) -> "State":
        """Return the state of the first ``rows`` rows, in the same memory."""
        part = copy(self)
        part.tokens, part.positions = self.tokens[:rows], self.positions[:rows]
        part.ranges, part.logits = self.ranges[:rows], self.logits[:rows]
        return part

    def clear(self, rows: slice) -> None:
        """Let rows read and write memory that is always there, at position 0."""
        self.self_attn.set(rows, *self._always_there(self.self_attn))
        self.clear_images(rows)
        self.tokens[rows].zero_()
        self.positions[rows].zero_()

    def set_images(self, rows: int | slice, layers: ImageKV) -> None:
        """Let rows read these vision tokens, within their ``ranges``."""
        if isinstance(layers, Float8KV):
            keys, values = layers.codes.unbind(1)
            self.cross_attn.set(rows, keys.unbind(), values.unbind(), layers.scales[:, :, 0])
            return
        self.cross_attn.set(rows, [keys for keys, _ in layers], [values for _, values in layers])

    def clear_images(self, rows: int | slice) -> None:
        """Let rows, which see no image, read memory that is always there as vision tokens."""
        self.cross_attn.set(rows, *self._always_there(self.cross_attn))
        self.ranges[rows].copy_(staged([0, 1], self.ranges))

    def _always_there(self, addresses: Addresses) -> tuple[list[Tensor], list[Tensor]]:
        """Return keys and values for each layer."""
        layers = [self._unused[addresses.base.dtype]] * addresses.table.shape[1]
        return layers, layers


@dataclass(frozen=True)
class _Layer:
    """The operands of one layer. ``cache_index`` is that of its keys and values in its kind of cache."""

    cache_index: int
    cross: bool
    attention_in: Product
    attention_out: Product
    mlp_in: Product
    mlp_out: Product
    query_norm: Tensor | None = None
    attention_gate: Tensor | None = None
    mlp_gate: Tensor | None = None


class DecodeStep:
    """The kernels of one step; ``with_images`` includes the cross-attention layers, on ``state.cross_attn``."""

    def __init__(self, network: Network, state: State, *, with_images: bool) -> None:
        model, config = network.language_model, network.language_model.config
        self.state, self.config, self.model = state, config, model
        batch = state.tokens.shape[0]
        device, dtype = state.tokens.device, state.logits.dtype
        eps = config.rms_norm_eps
        self.head = Product([network.lm_head], batch, dtype, norm=model.norm.weight, eps=eps)
        self.layers: list[_Layer] = []
        for layer in model.layers:
            assert isinstance(layer, MllamaSelfAttentionDecoderLayer | MllamaCrossAttentionDecoderLayer)
            if with_images or isinstance(layer, MllamaSelfAttentionDecoderLayer):
                self.layers.append(_layer(layer, batch, dtype, eps))
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
        exchange = network.lm_head.exchange
        self.ranks = exchange if isinstance(exchange, VocabularyOfRanks) else None
        self.logits = state.logits if self.ranks is None else buffer(network.lm_head.out_features)
        """Those of the tokens that this rank has."""
        self.scratch = Scratch(batch, heads, dim, splits_for(batch, kv_heads), device)
        self.sums, self.after_attention = self._connect_adapters(device)

    def _connect_adapters(self, device: torch.device) -> tuple[Tensor, list[Following | None]]:
        """Let kernels compute A x of adapters where they make x.

        Return the sums of all adapters, and what attention computes in each layer.
        """
        chain = [
            product
            for layer in self.layers
            for product in (layer.attention_in, layer.attention_out, layer.mlp_in, layer.mlp_out)
        ]
        sums = allocate_sums([*chain, self.head], device)
        kv_heads, dim = self.config.num_key_value_heads, self.config.head_dim
        after_attention = [
            following_by_heads(*product.handed_over(), kv_heads, dim) if product.ranks else None
            for product in (layer.attention_out for layer in self.layers)
        ]
        if self.ranks is None:  # results of ranks are not x before they are added up
            for layer, following in zip(self.layers, [*self.layers[1:], None], strict=True):
                layer.attention_out.feed(layer.mlp_in)
                layer.mlp_in.feed(layer.mlp_out)
                layer.mlp_out.feed(self.head if following is None else following.attention_in)
        return sums, after_attention

    def run(self) -> None:
        """Compute state.logits after state.tokens at state.positions; store their keys and values in the caches."""
        state, eps = self.state, self.config.rms_norm_eps
        x, y = self.residual
        if self.sums.numel():
            self.sums.zero_()
        first = self.layers[0].attention_in if self.layers else self.head
        table = self.model.embed_tokens.weight.detach()
        embed(state.tokens, state.positions, table, self.frequencies, x, self.rotation, first.form)
        for index, layer in enumerate(self.layers):
            following = self.layers[index + 1].attention_in if index + 1 < len(self.layers) else self.head
            form, mlp_form, down_form = layer.attention_in.form, layer.mlp_in.form, layer.mlp_out.form
            projected = self.query if layer.cross else self.projected
            layer.attention_in.multiply(x, projected)
            query, key, value = (projected, None, None) if layer.cross else self.qkv
            caches, visible = (state.cross_attn, state.ranges) if layer.cross else (state.self_attn, state.positions)
            decode_attention(
                query, self.attended, self.scratch, caches, visible, cache_index=layer.cache_index,
                kv_heads=self.config.num_key_value_heads, dim=self.config.head_dim, key=key, value=value,
                rotation=None if layer.cross else self.rotation, norm=layer.query_norm, eps=eps,
                out_interleave=layer.attention_out.form, following=self.after_attention[index],
            )  # fmt: skip
            layer.attention_out.multiply(
                self.attended, y, residual=self._once(x), factor=layer.attention_gate,
                out_interleave=mlp_form, residual_interleave=form,
            )  # fmt: skip
            self._add_up(y)
            layer.mlp_in.multiply(y, self.inner, out_interleave=down_form)
            layer.mlp_out.multiply(
                self.inner, x, residual=self._once(y), factor=layer.mlp_gate,
                out_interleave=following.form, residual_interleave=mlp_form,
            )  # fmt: skip
            self._add_up(x)
        self.head.multiply(x, self.logits)
        if self.ranks is not None:
            state.logits.copy_(self.ranks.gathered(self.logits))

    def _once(self, residual: Tensor) -> Tensor | None:
        """Return the residual on one of the ranks, whose results are added up."""
        return residual if self.ranks is None or self.ranks.group.share.rank == 0 else None

    def _add_up(self, part: Tensor) -> None:
        if self.ranks is not None:
            self.ranks.group.all_reduce(part)


def _layer(
    layer: MllamaSelfAttentionDecoderLayer | MllamaCrossAttentionDecoderLayer,
    batch: int,
    dtype: torch.dtype,
    eps: float,
) -> _Layer:
    query_norm = attention_gate = mlp_gate = None
    if isinstance(layer, MllamaCrossAttentionDecoderLayer):
        inputs, output = [layer.cross_attn.q_proj], layer.cross_attn.o_proj
        query_norm = layer.cross_attn.q_norm.weight.detach()
        attention_gate = layer.cross_attn_attn_gate.detach().float().tanh()
        mlp_gate = layer.cross_attn_mlp_gate.detach().float().tanh()
    else:
        attention = layer.self_attn
        inputs, output = [attention.q_proj, attention.k_proj, attention.v_proj], attention.o_proj
    mlp, mlp_norm = layer.mlp, layer.post_attention_layernorm.weight
    return _Layer(
        cache_index=layer.cache_index,
        cross=isinstance(layer, MllamaCrossAttentionDecoderLayer),
        attention_in=Product(inputs, batch, dtype, norm=layer.input_layernorm.weight, eps=eps),
        attention_out=Product([output], batch, dtype),
        mlp_in=Product([mlp.gate_proj, mlp.up_proj], batch, dtype, norm=mlp_norm, eps=eps, swiglu=True),
        mlp_out=Product([mlp.down_proj], batch, dtype),
        query_norm=query_norm,
        attention_gate=attention_gate,
        mlp_gate=mlp_gate,
    )
