"""Tokens of one conversation from captured steps, the host one step behind, so that the device never waits for it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mllama_cli.engine.cuda.graphs import Graphs
from mllama_cli.engine.forward import DecodeInput, Network
from mllama_cli.engine.sampling import not_finite
from mllama_cli.model.cache import KVCache
from mllama_cli.model.visibility import segments

AHEAD = 2
"""Steps that may be under way at once: while the host handles a token the device computes the next."""


class GraphDecoder:
    """Decodes one conversation at a time with ``Graphs`` of one row."""

    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device) -> None:
        self.graphs = Graphs(network, 1, dtype, device)
        self._device = device
        self._ring = torch.zeros(AHEAD + 1, 1, dtype=torch.int32, pin_memory=True)

    def prepare(self, *, sees: bool, sampled: bool) -> None:
        """Build and capture what ``tokens`` will replay."""
        self.graphs.get(None, sampled)
        self.graphs.get(sees, sampled)

    @torch.inference_mode()
    def tokens(self, start: DecodeInput) -> Iterator[int]:
        """Yield the answer's tokens.

        When a token is asked for, all before it are in the cache, and ``cache.lengths`` counts them. What the device
        has computed beyond that lies behind the end: nothing ever looks there, and the next answer writes over it.
        """
        state, choice, cache, cross = self.graphs.state, self.graphs.choice, start.cache, start.cross
        sampled, budget = start.sampling.temperature > 0, start.budget
        filled = cache.lengths[0]
        seen = segments(start.spans, cross.image_tokens[0], filled, filled + 1) if cross is not None else ()
        choose, step = self.graphs.get(None, sampled), self.graphs.get(bool(seen), sampled)
        if cross is not None and seen:
            state.cross.fill([k for k, _ in cross.layers], [v for _, v in cross.layers])
            state.ranges.copy_(_pinned([[seen[0].key_start, seen[0].key_end]]), non_blocking=True)
        self._reserve(cache, filled, filled + 1, refill=True)
        choice.set_row(0, start.sampling, start.prompt)
        state.positions.fill_(filled - 1)
        state.logits.copy_(start.logits)
        events = [torch.cuda.Event() for _ in range(AHEAD + 1)]
        launched = 0

        def launch(graph: torch.cuda.CUDAGraph) -> None:
            nonlocal launched
            choice.refill(0, launched)
            graph.replay()
            place = launched % (AHEAD + 1)
            self._ring[place].copy_(state.tokens, non_blocking=True)
            events[place].record(torch.cuda.current_stream(state.tokens.device))
            launched += 1

        launch(choose)
        for number in range(budget):
            while launched < min(number + AHEAD, budget):
                position = filled + launched - 1  # of the token that this step feeds
                self._reserve(cache, position, position + 1)
                launch(step)
            place = number % (AHEAD + 1)
            events[place].synchronize()
            token = int(self._ring[place])
            if token < 0:
                raise not_finite()
            cache.lengths = [filled + number]
            yield token

    def _reserve(self, cache: KVCache, filled: int, length: int, *, refill: bool = False) -> None:
        """Room for ``length`` positions, of which ``filled`` are written or being written."""
        if length > cache.capacity:
            cache.lengths, told = [filled], cache.lengths
            cache.reserve(length)
            cache.lengths = told
            refill = True
        if refill:
            self.graphs.state.own.fill(cache.keys, cache.values)


def _pinned(values: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).pin_memory()
