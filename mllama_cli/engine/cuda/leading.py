"""Captured decoding on rank 0: all ranks capture the same graphs, and replay them for each token."""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.forward import DecodeInput, Network
from mllama_cli.engine.parallel.team import Team
from mllama_cli.engine.sampling import ChosenToken

if TYPE_CHECKING:
    from mllama_cli.engine.cuda.passes import CapturedPasses


class LeadingDecoder(CapturedDecoder):
    """A ``CapturedDecoder`` whose graphs hold operations between ranks, so that the others have to replay theirs."""

    _feeds_forced = False  # the other ranks know no grammars

    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device, team: Team) -> None:
        super().__init__(network, dtype, device)
        self._team = team

    def build(self, *, with_images: bool, sampling: Sampling, check: bool) -> float:
        with self._team.together("build", with_images, shared(sampling), check, alike=True):
            return super().build(with_images=with_images, sampling=sampling, check=check)

    def tokens(self, start: DecodeInput) -> Generator[ChosenToken]:
        if self.fallback_reason:
            yield from super().tokens(start)  # by the network, which tells the others
            return
        given = (start.cache, start.cross, start.spans, shared(start.sampling), start.budget)
        yield from self._team.generate(super().tokens(start), "decode", *given, alike=True)

    def _make_passes(self) -> "CapturedPasses":
        from mllama_cli.engine.cuda.leading_passes import make_passes

        return make_passes(self._network, self._dtype, self._device, self._team)


def shared(sampling: Sampling) -> Sampling:
    """Return what decides how the choice of tokens is captured; other ranks take rank 0's tokens."""
    return replace(sampling, logprobs=None)
