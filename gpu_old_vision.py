"""The vision tower: tiles of an image -> vision tokens with intermediate features.

In Meta's reference image tokens attend to padding too; only padding attending to padding is masked. Two exact savings
are made (tests compare them with the masked form):

- No mask is needed: see model/vision_layers.py.
- An image's unused tiles start equal and stay equal, so one of them is computed and its keys count m times: an additive
  key bias of log(m), carried by two extra head dimensions.
"""

import math
from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllama_cli.core.config import MllamaVisionConfig
from mllama_cli.model.layers import Embedding, normal_parameter, result_of
from gpu_old_layers import MllamaVisionEncoder, MllamaVisionEncoderLayer


class MllamaPrecomputedAspectRatioEmbedding(nn.Module):
    """A learned vector for each tile of each aspect ratio, gated."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.shape = (config.max_num_tiles, 1, config.hidden_size)
        self.embedding = Embedding(len(config.supported_aspect_ratios) + 1, math.prod(self.shape))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, aspect_ratio_ids: Tensor, tiles: int) -> Tensor:
        """Look up ids [N] -> [N, tiles, 1, hidden], for the first ``tiles`` tiles."""
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
        """Look up ids [N] -> [N, tiles, tokens, hidden], for the first ``tiles`` tiles."""
        gate = self.gate.tanh()
        by_tile = self.tile_embedding(aspect_ratio_ids).unflatten(-1, self.shape)[:, :tiles]
        result: Tensor = (1 - gate) * self.embedding + gate * by_tile
        return result


class MllamaVisionModel(nn.Module):
    """Pixel tiles of images with the same number of tiles -> features of every token of their real tiles."""

    def __init__(self, config: MllamaVisionConfig) -> None:
        super().__init__()
        self.config = config
        size, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, size, patch, stride=patch, bias=False)
        self.class_embedding = normal_parameter(size, std=size**-0.5)
        self.gated_positional_embedding = MllamaPrecomputedPositionEmbedding(config)
        self.pre_tile_positional_embedding = MllamaPrecomputedAspectRatioEmbedding(config)
        self.post_tile_positional_embedding = MllamaPrecomputedAspectRatioEmbedding(config)
        self.layernorm_pre = nn.LayerNorm(size)  # as Meta: 1e-5, whatever the config says
        self.layernorm_post = nn.LayerNorm(size)
        self.transformer = MllamaVisionEncoder(config, config.num_hidden_layers, gated=False)
        self.global_transformer = MllamaVisionEncoder(config, config.num_global_layers, gated=True)
        self._compared: tuple[object, bool] | None = None

    def fuse_projections(self) -> None:
        """Fuse each layer's q, k and v products, for inference. Briefly takes the memory of one layer's matrices."""
        for encoder in (self.transformer, self.global_transformer):
            for layer in encoder.layers:
                assert isinstance(layer, MllamaVisionEncoderLayer)
                layer.self_attn.fuse_qkv()

    def unused_tiles_are_equal(self) -> bool:
        """Return whether the tables have equal rows for all unused tiles of an image, as in every released checkpoint.

        The answer is cached until the tables change.
        """
        tables = (
            self.pre_tile_positional_embedding.embedding.weight,
            self.post_tile_positional_embedding.embedding.weight,
            self.gated_positional_embedding.tile_embedding.weight,
        )
        # Inference tensors have no version counter, but cannot be written in place outside inference mode either.
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
        """Embed patches, class token and positions: [N, tiles, 3, T, T] -> [N, tiles + unused, tokens, hidden].

        ``unused`` tiles of zero pixels follow the real ones.
        """
        n, tiles = pixel_values.shape[:2]
        side, patch = self.config.image_size // self.config.patch_size, self.config.patch_size
        # Patches do not overlap, so the convolution is a matrix product.
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
        """Encode tiles [N, tiles, 3, T, T] with ids [N] to [N, tiles, tokens, hidden * (1 + intermediate layers)].

        All N images have the same number of real tiles. ``all_tiles`` appends the features of the unused tiles, which
        transformers projects too, although no text row may attend to them. ``equal_unused`` replaces
        ``unused_tiles_are_equal`` where the caller knows the answer, as in training.
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
        """Run ``forward`` layer by layer and yield how many are done, since a CPU takes a while."""
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
            if index in config.intermediate_layers_indices:  # Meta takes a layer's input (docs/accuracy.md, A)
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
        last = len(self.transformer.layers) + len(self.global_transformer.layers)
        for number, layer in enumerate(self.global_transformer.layers, len(self.transformer.layers) + 1):
            # After the last layer nothing attends to padding; transformers projects it with all tiles.
            x = layer(x, real, repeated, repeats, last=number == last and not all_tiles)
            yield number

        def features(states: Tensor) -> Tensor:
            kept: Tensor = states[:, :real].unflatten(1, (tiles, tokens))
            if not all_tiles or not unused:
                return kept
            rest = states[:, repeated].unflatten(1, (computed, padded))[:, :, :tokens]
            return torch.cat((kept, rest.repeat(1, repeats, 1, 1)), dim=1)

        # Interleaved: element d * 5 + l is dimension d of intermediate layer l.
        inner = torch.stack([features(states) for states in intermediate], dim=-1).flatten(-2)
        return torch.cat((features(x), inner), dim=-1)
