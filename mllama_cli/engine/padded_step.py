"""A step of the busy slots whose shapes and addresses stay from one to the next, so that it can be captured."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.engine.batch.cache import SlotCache
from mllama_cli.engine.forward import Network
from mllama_cli.model.cache import CrossKVCache
from mllama_cli.model.visibility import CrossView, Segment

ROWS = (1, 2, 4, 8, 16, 32, 64)
POSITIONS = 256


@dataclass(frozen=True)
class StepShape:
    """``rows`` slots from the first on, ``extent`` positions, and whether any row sees a picture."""

    rows: int
    extent: int
    sees: bool

    @classmethod
    def of(cls, cache: SlotCache) -> "StepShape":
        """The smallest that holds what is busy and the position that the step adds. Reserve that one first.

        Rows beyond the busy ones are computed too and mean nothing; what their slots held at position 0 is lost.
        """
        rows = next((rows for rows in ROWS if rows >= cache.busy), cache.slots)
        extent = -(-(cache.extent + 1) // POSITIONS) * POSITIONS
        return cls(
            min(rows, cache.slots),
            min(extent, cache.keys[0].shape[2]) if cache.keys else extent,
            any(cache.host_cross_lengths[: cache.busy]),
        )


class _Rows:
    """The first rows of a SlotCache, as the self-attention layers see them."""

    def __init__(self, cache: SlotCache, shape: StepShape) -> None:
        self._cache, self._shape = cache, shape
        self._places = torch.arange(shape.rows, device=cache.lengths.device)[:, None]

    def write(self, cache_index: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        stored_k, stored_v = self._cache.keys[cache_index], self._cache.values[cache_index]
        stored_k[self._places, :, positions] = keys.transpose(1, 2)
        stored_v[self._places, :, positions] = values.transpose(1, 2)
        rows, extent = self._shape.rows, self._shape.extent
        return stored_k[:rows, :, :extent], stored_v[:rows, :, :extent]


def padded_step(network: Network, cache: SlotCache, ids: Tensor, shape: StepShape) -> Tensor:
    """Newest tokens ids [rows, 1] -> logits [rows, vocab_size]. Lengths are read on the device and stay as they are."""
    model, rows = network.language_model, shape.rows
    positions = cache.lengths[:rows, None]
    mask = (torch.arange(shape.extent, device=positions.device) <= positions)[:, None, None]
    cross, view = None, None
    if shape.sees:
        width = cache.cross_keys[0].shape[2]
        seen = cache.cross_lengths[:rows, None]
        layers = [(k[:rows], v[:rows]) for k, v in zip(cache.cross_keys, cache.cross_values, strict=True)]
        cross = CrossKVCache(layers, [[width]] * rows)
        visible = (torch.arange(width, device=seen.device) < seen.clamp(min=1))[:, None, None]
        view = CrossView((Segment(0, 1, 0, width),), visible, (seen > 0)[..., None])
    hidden = model.run(ids, model.context(positions, _Rows(cache, shape), mask), cross, view)
    logits: Tensor = network.lm_head(hidden[:, 0])
    return logits
