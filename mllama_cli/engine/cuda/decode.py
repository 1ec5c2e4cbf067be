"""Decode one conversation with captured steps, launched ahead so that the device never waits for the host."""

from collections.abc import Iterator, Sequence

import torch

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.graphs import DecodeGraphs
from mllama_cli.engine.cuda.pass_shapes import shape_of
from mllama_cli.engine.cuda.passes import CapturedPasses, Piece
from mllama_cli.engine.forward import DecodeInput, Network, forced_tokens
from mllama_cli.engine.logits import log_probabilities
from mllama_cli.engine.sampling import ChosenToken, Method, chosen_token, noted
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import KVCache
from mllama_cli.model.visibility import segments

STEPS_AHEAD = 2
"""Maximum steps in progress: while the host handles a token, the device computes the next."""

MIN_FORCED_TOKENS = 3
"""Tokens without a choice that are fed together, by a captured pass.

On an H200 that takes as long as 1.5 steps of the 11B in bfloat16 and 3 in int4.
"""

FORCED_TOKENS = 32
"""Rows of the passes that are captured for such tokens: 16 are not faster. More tokens take several passes."""


class GraphDecoder:
    """Decode one conversation at a time with ``DecodeGraphs`` of one row."""

    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device) -> None:
        self.graphs = DecodeGraphs(network, 1, dtype, device)
        self._device = device
        self._tokens = torch.zeros(STEPS_AHEAD + 1, 1, dtype=torch.int32, pin_memory=device.type == "cuda")

    def prepare(self, *, with_images: bool, sampling: Sampling) -> None:
        """Build and capture the graphs that ``tokens`` replays."""
        method = Method.of(sampling)
        self.graphs.get(None, method)
        self.graphs.get(with_images, None if method.masks else method)

    @torch.inference_mode()
    def tokens(self, start: DecodeInput, passes: CapturedPasses | None = None) -> Iterator[ChosenToken]:
        """Yield the answer's tokens; by the time one is yielded, all before it are in the cache.

        ``cache.lengths`` counts those. Positions computed ahead are beyond it: never read, and later overwritten.
        Tokens that a grammar leaves no choice about go through ``passes`` that are captured for FORCED_TOKENS.
        """
        state, sampler, cache, cross = self.graphs.state, self.graphs.sampler, start.cache, start.cross
        method, asked, budget = Method.of(start.sampling), start.sampling.logprobs, start.budget
        constraint = start.constraint
        filled = cache.lengths[0]
        seen = segments(start.spans, cross.image_tokens[0], filled, filled + 1) if cross is not None else ()
        choose, step = self.graphs.get(None, method), self.graphs.get(bool(seen), None if method.masks else method)
        if cross is not None and seen:
            state.set_images(0, cross.layers)
            state.ranges.copy_(
                upload(torch.tensor([seen[0].key_start, seen[0].key_end], dtype=torch.int32), self._device)
            )
        self._reserve(cache, filled, filled + 1, refill=True)
        sampler.admit(0, start.sampling, start.prompt, constraint)
        state.positions.fill_(filled - 1)
        state.logits.copy_(start.logits)
        events = [torch.cuda.Event() for _ in range(STEPS_AHEAD + 1)]
        pinned = asked is not None and self._device.type == "cuda"
        details = torch.zeros(STEPS_AHEAD + 1, 1 + 2 * (asked or 0), dtype=torch.float64, pin_memory=pinned)
        launched = 0
        if passes is not None and shape_of(FORCED_TOKENS, with_images=bool(seen)) not in passes:
            passes = None

        def launch(graph: torch.cuda.CUDAGraph) -> None:
            nonlocal launched
            sampler.refill(0)
            sampler.update_masks()
            graph.replay()
            index = launched % (STEPS_AHEAD + 1)
            self._tokens[index].copy_(state.tokens, non_blocking=True)
            if asked is not None:
                numbers = log_probabilities(state.logits, state.tokens, asked)
                details[index].copy_(numbers[0], non_blocking=True)
            events[index].record(torch.cuda.current_stream(state.tokens.device))
            launched += 1

        launch(choose)
        done = read = 0  # tokens that are yielded, and choices of the device that are read
        while done < budget:
            left = budget - done - 1
            while not method.masks and launched < min(done + STEPS_AHEAD, budget):
                position = filled + launched - 1  # that of the fed token
                self._reserve(cache, position, position + 1)
                launch(step)
            if method.masks and left:  # the device computes the step while the host reads the token that it feeds
                self._reserve(cache, filled + done, filled + done + 1)
                step.replay()
            index = read % (STEPS_AHEAD + 1)
            read += 1
            events[index].synchronize()
            tokens = [noted(chosen_token(int(self._tokens[index]), details[index].tolist(), asked), constraint)]
            if method.masks and left and not isinstance(tokens[0], MllamaError):
                forced = forced_tokens(start, left) if passes is not None else []
                if passes is not None and len(forced) >= MIN_FORCED_TOKENS:
                    self._feed(passes, forced, start, filled + done + 1)
                    tokens += [noted(ChosenToken(id_), constraint) for id_ in forced]
                if done + len(tokens) < budget and not isinstance(tokens[-1], MllamaError):
                    launch(choose)
            for token in tokens:
                if isinstance(token, MllamaError):
                    raise token
                cache.lengths = [filled + done]
                yield token
                done += 1

    def _feed(self, passes: CapturedPasses, ids: Sequence[int], start: DecodeInput, filled: int) -> None:
        """Feed tokens at ``filled``, after positions that are written or in progress, before the next choice."""
        state, cache = self.graphs.state, start.cache
        self._reserve(cache, filled, filled + len(ids))
        cache.lengths = [filled]
        for first in range(0, len(ids), FORCED_TOKENS):
            piece = Piece(ids[first : first + FORCED_TOKENS], cache, start.cross, start.spans)
            logits = passes.run([piece])
        state.logits.copy_(logits)
        state.positions.add_(len(ids))
        self.graphs.sampler.skip(0, len(ids))

    def _reserve(self, cache: KVCache, filled: int, length: int, *, refill: bool = False) -> None:
        """Make room for ``length`` positions, of which ``filled`` are written or in progress."""
        if length > cache.capacity:
            cache.lengths, counted = [filled], cache.lengths
            cache.reserve(length)
            cache.lengths = counted
            refill = True
        if refill:
            self.graphs.state.self_attn.set(0, cache.keys, cache.values)
