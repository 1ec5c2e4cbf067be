"""The vision tower: tiles of an image -> vision tokens with intermediate features.

Meta's reference lets the tokens of an image attend to padding as well; only padding attending to padding is masked. Two
savings are exact and made here (tests check them against the masked form):

- The sequence is kept as [real tokens | padding], so the mask becomes two calls without one: real queries over all
  keys, padding queries over real keys.
- The unused tiles of an image start equal and stay equal, so one of them is computed and its keys count m times: an
  additive key bias of log(m), carried by two extra head dimensions.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllama_cli.core.config import MllamaVisionConfig
from mllama_cli.kernels.ops import add_layer_norm, pad_heads
from mllama_cli.kernels.sdpa import encoder_attention
from mllama_cli.model.layers import Embedding, Linear, normal_parameter, result_of


class MllamaVisionAttention(nn.Module):
    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.attention_heads
        size = config.hidden_size
        self.q_proj = Linear(size, size, bias=False)
        self.k_proj = Linear(size, size, bias=False)
        self.v_proj = Linear(size, size, bias=False)
        self.o_proj = Linear(size, size, bias=False)
        self.qkv_weight: Tensor | None = None
        """The three matrices as one [3 * size, size], where they are views of it."""

    def fuse_qkv(self) -> None:
        """Concatenate the query, key and value matrices, so that one product makes all three.

        The three parameters become views of one tensor: no more memory is taken, and they stay what they were.
        """
        parts = (self.q_proj, self.k_proj, self.v_proj)
        if any(type(part) is not Linear for part in parts):  # a quantized layer multiplies by itself
            return
        self.qkv_weight = torch.cat([part.weight.detach() for part in parts])
        for part, rows in zip(parts, self.qkv_weight.chunk(3), strict=True):
            part.weight = nn.Parameter(rows, requires_grad=False)

    def project(self, x: Tensor) -> Tensor:
        """x [N, tokens, hidden] -> queries, keys and values [N, tokens, 3, heads, head_dim]."""
        if self.qkv_weight is not None and self.qkv_weight.data_ptr() == self.q_proj.weight.data_ptr():
            fused: Tensor = F.linear(x, self.qkv_weight).unflatten(-1, (3, -1, self.head_dim))
            return fused
        parts = [project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)]
        return torch.stack(parts, dim=2)

    def forward(self, x: Tensor, real: int, repeated: slice, repeats: int) -> Tensor:
        """Attention over x [N, real + padding, hidden]; the keys in ``repeated`` count ``repeats`` times."""
        qkv = self.project(x)
        scale = self.head_dim**-0.5
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        try:
            with on_side_stream(x):  # few queries: alone they would leave a GPU idle
                padding = encoder_attention(q[:, :, real:], k[:, :, :real], v[:, :, :real], scale)
            if repeats > 1:
                q, k, v = repeat_padding_keys(qkv, scale, repeated.start, repeats).permute(2, 0, 3, 1, 4)
            seen = encoder_attention(q[:, :, :real], k, v, scale)[..., : self.head_dim]
        finally:
            join_side_stream(x)  # in any case: no capture can end with a stream that has not joined
        result: Tensor = self.o_proj(torch.cat((seen.transpose(1, 2), padding.transpose(1, 2)), dim=1).flatten(2))
        return result


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def on_side_stream(x: Tensor) -> Iterator[None]:
    """Let a GPU run the block in parallel with what follows, until ``join_side_stream``. No effect elsewhere."""
    if not x.is_cuda or torch.is_grad_enabled():
        yield
        return
    side = _side_stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):
        yield


def join_side_stream(x: Tensor) -> None:
    """Wait for what was started ``on_side_stream``."""
    if x.is_cuda and not torch.is_grad_enabled():
        torch.cuda.current_stream(x.device).wait_stream(_side_stream(x.device))


def repeat_padding_keys(qkv: Tensor, scale: float, first: int, repeats: int) -> Tensor:
    """Queries, keys, values [N, tokens, 3, heads, D], padded so that keys from ``first`` on count ``repeats`` times.

    The bias log(repeats) / scale is carried by two extra dimensions, as a value of q's dtype and what that rounding
    left over, so that it is exact enough in bfloat16 too. Fast attention kernels want head dimensions that are
    multiples of 8.
    """
    dim = qkv.shape[-1]
    bias = torch.tensor(math.log(repeats) / scale)
    rounded = bias.to(qkv.dtype).float()
    return pad_heads(qkv, -(-(dim + 2) // 8) * 8, first, float(rounded), float(bias - rounded))


class MllamaVisionMLP(nn.Module):
    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class MllamaVisionEncoderLayer(nn.Module):
    """Pre-norm transformer layer; the global ones gate both branches with tanh."""

    def __init__(self, config: MllamaVisionConfig, gated: bool) -> None:
        super().__init__()
        self.self_attn = MllamaVisionAttention(config)
        self.mlp = MllamaVisionMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.gated = gated
        if gated:
            self.gate_attn = nn.Parameter(torch.full((1,), math.pi / 4))
            self.gate_ffn = nn.Parameter(torch.full((1,), math.pi / 4))

    def forward(self, x: Tensor, real: int, repeated: slice, repeats: int) -> Tensor:
        attention = self.self_attn(self.input_layernorm(x), real, repeated, repeats)
        norm, gate = self.post_attention_layernorm, self.gate_attn.tanh() if self.gated else None
        x, normed = add_layer_norm(x, attention, gate, norm.weight, norm.bias, norm.eps)
        mlp = self.mlp(normed)
        result: Tensor = x + (self.gate_ffn.tanh() * mlp if self.gated else mlp)
        return result


class MllamaVisionEncoder(nn.Module):
    def __init__(self, config: MllamaVisionConfig, layers: int, gated: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MllamaVisionEncoderLayer(config, gated) for _ in range(layers))


class MllamaPrecomputedAspectRatioEmbedding(nn.Module):
    """A learned vector for each tile of each aspect ratio, gated."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.shape = (config.max_num_tiles, 1, config.hidden_size)
        self.embedding = Embedding(len(config.supported_aspect_ratios) + 1, math.prod(self.shape))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, aspect_ratio_ids: Tensor, tiles: int) -> Tensor:
        """Ids [N] -> [N, tiles, 1, hidden], for the first ``tiles`` tiles."""
        table = self.embedding(aspect_ratio_ids).unflatten(-1, self.shape)[:, :tiles]
        result: Tensor = self.gate.tanh() * table
        return result


class MllamaPrecomputedPositionEmbedding(nn.Module):
    """A learned vector for each token of a tile, and one for each token of each tile of each aspect ratio."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        tokens, size = config.tokens_per_tile, config.hidden_size
        self.shape = (config.max_num_tiles, tokens, size)
        self.gate = nn.Parameter(torch.zeros(1))
        self.embedding = normal_parameter(tokens, size, std=size**-0.5)
        self.tile_embedding = Embedding(len(config.supported_aspect_ratios) + 1, math.prod(self.shape))

    def forward(self, aspect_ratio_ids: Tensor, tiles: int) -> Tensor:
        """Ids [N] -> [N, tiles, tokens, hidden], for the first ``tiles`` tiles."""
        gate = self.gate.tanh()
        by_tile = self.tile_embedding(aspect_ratio_ids).unflatten(-1, self.shape)[:, :tiles]
        result: Tensor = (1 - gate) * self.embedding + gate * by_tile
        return result


class MllamaVisionModel(nn.Module):
    """Pixel tiles of images that have equally many tiles -> features of every token of their real tiles."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.config = config
        size, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, size, patch, stride=patch, bias=False)
        self.class_embedding = normal_parameter(size, std=size**-0.5)
        self.gated_positional_embedding = MllamaPrecomputedPositionEmbedding(config)
        self.pre_tile_positional_embedding = MllamaPrecomputedAspectRatioEmbedding(config)
        self.post_tile_positional_embedding = MllamaPrecomputedAspectRatioEmbedding(config)
        self.layernorm_pre = nn.LayerNorm(size)  # Meta's own default here: 1e-5 whatever the config says
        self.layernorm_post = nn.LayerNorm(size)
        self.transformer = MllamaVisionEncoder(config, config.num_hidden_layers, gated=False)
        self.global_transformer = MllamaVisionEncoder(config, config.num_global_layers, gated=True)
        self._compared: tuple[object, bool] | None = None

    def fuse_projections(self) -> None:
        """Make one product of each layer's three, for inference. Briefly takes as much memory as a layer has."""
        for encoder in (self.transformer, self.global_transformer):
            for layer in encoder.layers:
                assert isinstance(layer, MllamaVisionEncoderLayer)
                layer.self_attn.fuse_qkv()

    def unused_tiles_are_equal(self) -> bool:
        """Return whether the tables give all unused tiles of an image the same rows, as in every released checkpoint.

        Compared once per set of weights.
        """
        tables = (
            self.pre_tile_positional_embedding.embedding.weight,
            self.post_tile_positional_embedding.embedding.weight,
            self.gated_positional_embedding.tile_embedding.weight,
        )
        # Inference tensors keep no version counter; they cannot be written in place outside inference mode either.
        version = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tables)
        if self._compared is None or self._compared[0] != version:
            equal = True
            for id_ in range(1, len(self.config.supported_aspect_ratios) + 1):
                used = self.config.tiles(id_)
                for table in tables:
                    unused = table[id_].unflatten(0, (self.config.max_num_tiles, -1))[used:]
                    equal = equal and bool((unused == unused[:1]).all())
            self._compared = (version, equal)
        return self._compared[1]

    def embed_tiles(self, pixel_values: Tensor, aspect_ratio_ids: Tensor, unused: int = 0) -> Tensor:
        """Patches, class token and positions: [N, tiles, 3, T, T] -> [N, tiles + unused, tokens, hidden].

        ``unused`` tiles of zero pixels follow the real ones.
        """
        n, tiles = pixel_values.shape[:2]
        side, patch = self.config.image_size // self.config.patch_size, self.config.patch_size
        # The convolution as a matrix product: its patches do not overlap.
        cut = pixel_values.reshape(n, tiles, -1, side, patch, side, patch).permute(0, 1, 3, 5, 2, 4, 6)
        patches = F.linear(cut.flatten(4).flatten(2, 3), self.patch_embedding.weight.flatten(1))
        x = F.pad(patches, (0, 0, 0, 0, 0, unused))
        x = x + self.pre_tile_positional_embedding(aspect_ratio_ids, tiles + unused)
        x = torch.cat((self.class_embedding.expand(n, tiles + unused, 1, -1), x), dim=2)
        result: Tensor = self.layernorm_pre(x + self.gated_positional_embedding(aspect_ratio_ids, tiles + unused))
        return result

    def forward(
        self,
        pixel_values: Tensor,
        aspect_ratio_ids: Tensor,
        *,
        all_tiles: bool = False,
        equal_unused: bool | None = None,
    ) -> Tensor:
        """pixel_values [N, tiles, 3, T, T] and aspect ratio ids [N] -> [N, tiles, tokens, hidden * (1 + intermediate)].

        All N images have the same number of real tiles. ``all_tiles`` also gives the features of the unused tiles
        (tile count 4 then), which the projector of transformers' model gets too; no text row may attend to them.
        ``equal_unused`` answers ``unused_tiles_are_equal`` where the caller knows: training keeps them so.
        """
        return result_of(self.steps(pixel_values, aspect_ratio_ids, all_tiles=all_tiles, equal_unused=equal_unused))

    def steps(
        self,
        pixel_values: Tensor,
        aspect_ratio_ids: Tensor,
        *,
        all_tiles: bool = False,
        equal_unused: bool | None = None,
    ) -> Generator[int, None, Tensor]:
        """``forward`` layer by layer: yields how many are done, which on a CPU takes a while, and returns the rest."""
        config = self.config
        n, tiles = pixel_values.shape[:2]
        tokens, padded, size = config.tokens_per_tile, config.padded_tokens_per_tile, config.hidden_size
        unused = config.max_num_tiles - tiles
        repeats = unused if (self.unused_tiles_are_equal() if equal_unused is None else equal_unused) else 1
        computed = unused // repeats if unused else 0
        every = tiles + computed
        pad = padded - tokens
        real = tiles * tokens

        x = self.embed_tiles(pixel_values, aspect_ratio_ids, computed)

        # [real tokens | pad tokens of real tiles | unused tiles with their pad tokens]
        x = torch.cat((x[:, :tiles].flatten(1, 2), F.pad(x[:, tiles:], (0, 0, 0, pad)).flatten(1, 2)), dim=1)
        x = torch.cat((x[:, :real], x.new_zeros(n, tiles * pad, size), x[:, real:]), dim=1)
        repeated = slice(tiles * padded, None)

        intermediate = []
        for index, layer in enumerate(self.transformer.layers):
            if index in config.intermediate_layers_indices:  # Meta takes a layer's input (README, "How exact", A)
                intermediate.append(x)
            x = layer(x, real, repeated, repeats)
            yield index + 1
        x = self.layernorm_post(x)
        tile_vectors = self.post_tile_positional_embedding(aspect_ratio_ids, every)
        x = x + torch.cat(
            (
                tile_vectors[:, :tiles].expand(-1, -1, tokens, -1).flatten(1, 2),
                tile_vectors[:, :tiles].expand(-1, -1, pad, -1).flatten(1, 2),
                tile_vectors[:, tiles:].expand(-1, -1, padded, -1).flatten(1, 2),
            ),
            dim=1,
        )
        for index, layer in enumerate(self.global_transformer.layers, len(self.transformer.layers)):
            x = layer(x, real, repeated, repeats)
            yield index + 1

        def features(states: Tensor) -> Tensor:
            kept: Tensor = states[:, :real].unflatten(1, (tiles, tokens))
            if not all_tiles or not unused:
                return kept
            rest = states[:, repeated].unflatten(1, (computed, padded))[:, :, :tokens]
            return torch.cat((kept, rest.repeat(1, repeats, 1, 1)), dim=1)

        # Interleaved: element d * 5 + l is dimension d of intermediate layer l.
        inner = torch.stack([features(states) for states in intermediate], dim=-1).flatten(-2)
        return torch.cat((features(x), inner), dim=-1)
