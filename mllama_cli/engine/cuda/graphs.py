"""Decode steps of one network as graphs, captured once and replayed for every token."""

from functools import partial

import torch

from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.exchange import VocabularyOfRanks
from mllama_cli.engine.sampling import Method, Sampler
from mllama_cli.kernels.cuda.embed_argmax import Argmax
from mllama_cli.kernels.cuda.launch import compile_only


class DecodeGraphs:
    """Steps for ``batch`` rows, with or without cross-attention layers, for each method; captured on first use.

    Capture before an answer begins: it overwrites ``state``, though no cache, since it runs on an empty one.
    """

    def __init__(self, network: Network, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.network, self.device = network, device
        self.state = State(network, batch, dtype, device)
        config = network.language_model.config
        self.sampler = Sampler(batch, config.vocab_size, device)
        exchange = network.lm_head.exchange
        self.ranks = exchange if isinstance(exchange, VocabularyOfRanks) else None
        self._best = Argmax(batch, config.vocab_size, device)
        self._steps: dict[bool, DecodeStep] = {}
        self._graphs: dict[tuple[bool | None, Method | None], torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def get(self, with_images: bool | None, method: Method | None) -> torch.cuda.CUDAGraph:
        """Return the graph that runs a step (not for ``with_images`` None) and chooses the next tokens.

        For ``method`` None it only runs the step: where a constraint masks tokens, the host works between the two.
        """
        key = (with_images, method)
        if key not in self._graphs:
            if with_images is not None and with_images not in self._steps:
                self._steps[with_images] = DecodeStep(self.network, self.state, with_images=with_images)
            run = partial(self._run, None if with_images is None else self._steps[with_images], method)
            self.state.clear(slice(None))
            with compile_only():
                run()
            self._graphs[key], _ = capture(run, torch.cuda.Stream(self.device))
        return self._graphs[key]

    def _run(self, step: DecodeStep | None, method: Method | None) -> None:
        """Compute state.logits after state.tokens, and choose new state.tokens (-1 where logits are not finite)."""
        state = self.state
        if step is not None:
            step.run()
        if method is None:
            return
        if method.takes_best:
            masks = (self.sampler.masks, self.sampler.all_rows) if method.masks else None
            self._best(state.logits, state.tokens, state.positions, masks)
        else:
            state.tokens.copy_(self.sampler.tokens(state.logits, self.sampler.all_rows, method))
            state.positions.add_(1)
        if self.ranks is not None:  # rank 0 chooses
            self.ranks.group.broadcast(state.tokens)
