"""Captured decode steps of one network: what is captured once and replayed for every token after."""

from functools import partial

import torch

from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.forward import Network
from mllama_cli.engine.sampling import GREEDY, Method, Sampler
from mllama_cli.kernels.cuda.embed_argmax import Argmax
from mllama_cli.kernels.cuda.launch import compile_only


class Graphs:
    """Steps for ``batch`` rows: with and without the image layers, by each method; captured when first asked for.

    Capture before an answer begins: that overwrites ``state``, but no cache, as it runs over an empty one of its own.
    """

    def __init__(self, network: Network, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.network, self.device = network, device
        self.state = State(network, batch, dtype, device)
        config = network.language_model.config
        self.sampler = Sampler(batch, config.vocab_size, device)
        self._best = Argmax(batch, config.vocab_size, device)
        self._steps: dict[bool, DecodeStep] = {}
        self._graphs: dict[tuple[bool | None, Method], torch.cuda.CUDAGraph] = {}
        shape = (batch, config.num_key_value_heads, 16, config.head_dim)
        self._empty = torch.zeros(shape, dtype=dtype, device=device)

    @torch.inference_mode()
    def get(self, with_images: bool | None, method: Method) -> torch.cuda.CUDAGraph:
        """Return the graph that runs a step (``with_images`` None: none) and then chooses the next tokens."""
        key = (with_images, method)
        if key not in self._graphs:
            run = partial(self._run, None if with_images is None else self._step(with_images), method)
            self._prepare()
            with compile_only():
                run()
            self._graphs[key], _ = capture(run, torch.cuda.Stream(self.device))
        return self._graphs[key]

    def _step(self, with_images: bool) -> DecodeStep:
        if with_images not in self._steps:
            self._steps[with_images] = DecodeStep(self.network, self.state, with_images=with_images)
        return self._steps[with_images]

    def _run(self, step: DecodeStep | None, method: Method) -> None:
        """state.tokens at state.positions -> state.logits -> the next state.tokens (-1 where logits are not finite)."""
        state = self.state
        if step is not None:
            step.run()
        if method == GREEDY:
            self._best(state.logits, state.tokens, state.positions)
        else:
            state.tokens.copy_(self.sampler.tokens(state.logits, self.sampler.all_rows, method))
            state.positions.add_(1)

    def _prepare(self) -> None:
        """Have the state point at the empty cache."""
        state = self.state
        for addresses in (state.self_attn, state.cross_attn):
            empty = [self._empty] * addresses.table.shape[0]
            addresses.fill(empty, empty)
        state.positions.zero_()
        state.tokens.zero_()
        state.ranges[:, 0].zero_()
        state.ranges[:, 1].fill_(1)
