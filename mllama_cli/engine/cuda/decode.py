"""Decode one conversation with captured steps, the host one step behind, so that the device never waits for it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.graphs import Graphs
from mllama_cli.engine.forward import DecodeInput, Network
from mllama_cli.engine.logits import log_probabilities
from mllama_cli.engine.sampling import ChosenToken, Method, chosen_token
from mllama_cli.model.cache import KVCache
from mllama_cli.model.visibility import segments

STEPS_AHEAD = 2
"""Steps in progress at most: while the host handles a token the device computes the next."""


class GraphDecoder:
    """Decodes one conversation at a time with ``Graphs`` of one row."""

    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device) -> None:
        self.graphs = Graphs(network, 1, dtype, device)
        self._device = device
        self._tokens = torch.zeros(STEPS_AHEAD + 1, 1, dtype=torch.int32, pin_memory=True)

    def prepare(self, *, with_images: bool, sampling: Sampling) -> None:
        """Build and capture what ``tokens`` will replay."""
        method = Method.of(sampling)
        self.graphs.get(None, method)
        self.graphs.get(with_images, method)

    @torch.inference_mode()
    def tokens(self, start: DecodeInput) -> Iterator[ChosenToken]:
        """Yield the answer's tokens.

        When the next one is asked for, all before it are in the cache, and ``cache.lengths`` counts them. What the
        device has computed beyond is behind the end, where nothing is read; the next answer overwrites it.
        """
        state, sampler, cache, cross = self.graphs.state, self.graphs.sampler, start.cache, start.cross
        method, asked, budget = Method.of(start.sampling), start.sampling.logprobs, start.budget
        filled = cache.lengths[0]
        seen = segments(start.spans, cross.image_tokens[0], filled, filled + 1) if cross is not None else ()
        choose, step = self.graphs.get(None, method), self.graphs.get(bool(seen), method)
        if cross is not None and seen:
            state.cross_attn.fill([k for k, _ in cross.layers], [v for _, v in cross.layers])
            state.ranges.copy_(_pinned([[seen[0].key_start, seen[0].key_end]]), non_blocking=True)
        self._reserve(cache, filled, filled + 1, refill=True)
        sampler.admit(0, start.sampling, start.prompt)
        state.positions.fill_(filled - 1)
        state.logits.copy_(start.logits)
        events = [torch.cuda.Event() for _ in range(STEPS_AHEAD + 1)]
        details = torch.zeros(STEPS_AHEAD + 1, 1 + 2 * (asked or 0), dtype=torch.float64, pin_memory=asked is not None)
        launched = 0

        def launch(graph: torch.cuda.CUDAGraph) -> None:
            nonlocal launched
            sampler.refill(0)
            graph.replay()
            index = launched % (STEPS_AHEAD + 1)
            self._tokens[index].copy_(state.tokens, non_blocking=True)
            if asked is not None:
                numbers = log_probabilities(state.logits, state.tokens, asked)
                details[index].copy_(numbers[0], non_blocking=True)
            events[index].record(torch.cuda.current_stream(state.tokens.device))
            launched += 1

        launch(choose)
        for number in range(budget):
            while launched < min(number + STEPS_AHEAD, budget):
                position = filled + launched - 1  # of the token that this step feeds
                self._reserve(cache, position, position + 1)
                launch(step)
            index = number % (STEPS_AHEAD + 1)
            events[index].synchronize()
            token = chosen_token(int(self._tokens[index]), details[index].tolist(), asked)
            if isinstance(token, MllamaError):
                raise token
            cache.lengths = [filled + number]
            yield token

    def _reserve(self, cache: KVCache, filled: int, length: int, *, refill: bool = False) -> None:
        """Make room for ``length`` positions, of which ``filled`` are written or being written."""
        if length > cache.capacity:
            cache.lengths, counted = [filled], cache.lengths
            cache.reserve(length)
            cache.lengths = counted
            refill = True
        if refill:
            self.graphs.state.self_attn.fill(cache.keys, cache.values)


def _pinned(values: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).pin_memory()
