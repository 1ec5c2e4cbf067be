"""How a rank opens its share of a network, as data that rank 0 sends."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.plan import Share
from mllama_cli.engine.weights.loader import StoredWeights
from mllama_cli.model.layers import set_exact
from mllama_cli.quantization.opening import open_network


@dataclass(frozen=True)
class OpenedShare:
    """A rank's share of a network. ``dtype`` is that of activations; ``weights`` loads what is missing, if anything."""

    network: Network
    dtype: torch.dtype
    weights: StoredWeights | None = None


Opening = Callable[[Share, torch.device], OpenedShare]


@dataclass(frozen=True)
class CheckpointOpening:
    """Opens a checkpoint; the options are those of ``load``."""

    folder: Path
    dtype: str
    quantize: str | None
    exact: bool
    adapters: tuple[Path, ...]

    def __call__(self, share: Share, device: torch.device) -> OpenedShare:
        opened = open_network(self.folder)
        weights = StoredWeights(opened, device, self.dtype, self.quantize, self.adapters, share)
        set_exact(opened.network, self.exact)
        return OpenedShare(opened.network, weights.dtype, weights)

    def fits(self, share: Share, device: torch.device) -> bool:
        """Return whether a rank's share fits a GPU; its embeddings may be in host memory, but no vision tower."""
        weights = self(share, device).weights
        assert weights is not None
        try:
            return not weights.choose_plan({"text", "vision"}).vision
        except MemoryShortageError:
            return False
