"""Captured passes of a network that several ranks share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mllama_cli.engine.cuda.pass_shapes import PassShape
from mllama_cli.engine.cuda.passes import CapturedPasses, Piece
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.team import Team


class LeadingPasses(CapturedPasses):
    """Passes on rank 0: the other ranks capture and run theirs."""

    def __init__(
        self, team: Team, network: Network, dtype: torch.dtype, device: torch.device, *, float8: bool = False
    ) -> None:
        self._team, self._name = team, team.names.of_slots(self)
        with team.together("make_passes", self._name, float8, alike=True):
            super().__init__(network, dtype, device, float8=float8)

    def capture(self, shape: PassShape) -> None:
        if shape in self:
            return
        with self._team.together("on_slots", self._name, "capture", shape, alike=True):
            super().capture(shape)

    def forget(self) -> None:
        with self._team.together("on_slots", self._name, "forget", alike=True):
            super().forget()

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        with self._team.together("on_slots", self._name, "run", pieces, alike=True):
            return super().run(pieces)


def make_passes(
    network: Network, dtype: torch.dtype, device: torch.device, team: Team | None, *, float8: bool = False
) -> CapturedPasses:
    """Return passes of a network, or of all ranks that share it; with ``float8`` they read images in 8 bits."""
    if team is None:
        return CapturedPasses(network, dtype, device, float8=float8)
    return LeadingPasses(team, network, dtype, device, float8=float8)
