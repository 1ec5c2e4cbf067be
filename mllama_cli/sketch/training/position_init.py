"""Initialise the vision tower's position tables: sinusoids over the canvas with the same variance as the patches.

From small random tables, which a bright background swamps, the tower hardly learns positions: after 5,000 steps
"Where is the star?" was still answered at chance level.
"""

import math

import torch
from torch import Tensor

from mllama_cli.model.vision import MllamaVisionModel

SHORTEST_WAVELENGTH = 2.5
"""The shortest wavelength, in patches."""


def waves(positions: Tensor, dimensions: int, longest: float) -> Tensor:
    """Return sines and cosines of ``positions`` [N] in patches: [N, dimensions], each of variance 4.

    The gate halves each table, so they are added to the patches with unit variance.
    """
    octaves = torch.linspace(0, math.log(longest / SHORTEST_WAVELENGTH), dimensions // 2)
    phases = positions[:, None] * (2 * math.pi / longest) * octaves.exp()
    return math.sqrt(8) * torch.cat((phases.sin(), phases.cos()), dim=-1)


@torch.no_grad()
def fill_position_tables(tower: MllamaVisionModel) -> None:
    """Encode the position in the tile in half of the dimensions, on the canvas in the others; class tokens get none."""
    config, tables = tower.config, tower.gated_positional_embedding
    side, quarter = config.image_size // config.patch_size, config.hidden_size // 4
    tables.gate.fill_(math.atanh(0.5))
    tables.embedding.zero_()
    by_tile = tables.tile_embedding.weight.zero_().unflatten(1, tables.shape)
    patch = torch.arange(side * side)
    x, y = patch % side, patch // side

    def both(x: Tensor, y: Tensor, longest: float) -> Tensor:
        return torch.cat((waves(x, quarter, longest), waves(y, quarter, longest)), dim=-1)

    tables.embedding[1:, : 2 * quarter] = both(x, y, 2 * side)
    for id_, (_, columns) in enumerate(config.supported_aspect_ratios, start=1):
        for tile in range(config.tiles(id_)):
            row, column = divmod(tile, columns)
            position = both(x + column * side, y + row * side, 2 * config.max_num_tiles * side)
            by_tile[id_, tile, 1:, 2 * quarter :] = position
