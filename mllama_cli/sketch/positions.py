"""First values of the vision tower's position tables: waves over the canvas, as loud as the patches themselves.

From random tables that are faint beside a bright background the tower hardly learns where things are: after 5,000
steps of such a training "Where is the star?" was answered by chance.
"""

import math

import torch
from torch import Tensor

from mllama_cli.model.vision import MllamaVisionModel

SHORTEST = 2.5
"""Of the wavelengths, in patches."""


def waves(places: Tensor, dimensions: int, longest: float) -> Tensor:
    """Sines and cosines of ``places`` [N], counted in patches: [N, dimensions], each of variance 4.

    The gate takes half of each table, so they stand beside the patches with unit variance.
    """
    octaves = torch.linspace(0, math.log(longest / SHORTEST), dimensions // 2)
    phases = places[:, None] * (2 * math.pi / longest) * octaves.exp()
    return math.sqrt(8) * torch.cat((phases.sin(), phases.cos()), dim=-1)


@torch.no_grad()
def fill_position_tables(tower: MllamaVisionModel) -> None:
    """Half of the dimensions tell the place in the tile, half the place on the canvas; class tokens have none."""
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
            place = both(x + column * side, y + row * side, 2 * config.max_num_tiles * side)
            by_tile[id_, tile, 1:, 2 * quarter :] = place
