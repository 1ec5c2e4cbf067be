"""Captured decode steps of one network: what is captured once and replayed for every token after."""

from collections.abc import Callable

import torch

from mllama_cli.engine.cuda.sampler import Choice
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.forward import Network
from mllama_cli.kernels.cuda.launch import compile_only


class Graphs:
    """Steps for ``batch`` rows: with and without the image layers, greedy or sampled; captured when first asked for.

    Capturing touches no cache that is in use: it runs once over an empty one of its own.
    """

    def __init__(self, network: Network, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.network, self.batch = network, batch
        self.state = State(network, batch, dtype, device)
        self.choice = Choice(self.state)
        self._steps: dict[bool, DecodeStep] = {}
        self._graphs: dict[tuple[bool | None, bool], torch.cuda.CUDAGraph] = {}
        config = network.language_model.config
        shape = (batch, config.num_key_value_heads, 16, config.head_dim)
        self._empty = torch.zeros(shape, dtype=dtype, device=device)

    def get(self, sees: bool | None, sampled: bool) -> torch.cuda.CUDAGraph:
        """The graph that runs a step (``sees`` None: none) and then chooses the next tokens."""
        key = (sees, sampled)
        if key not in self._graphs:
            choose = self.choice.sampled if sampled else self.choice.greedy
            step = None if sees is None else self._step(sees)
            self._graphs[key] = self._capture([choose] if step is None else [step.run, choose])
        return self._graphs[key]

    def _step(self, sees: bool) -> DecodeStep:
        if sees not in self._steps:
            self._steps[sees] = DecodeStep(self.network, self.state, sees=sees)
        return self._steps[sees]

    def _capture(self, launches: list[Callable[[], None]]) -> torch.cuda.CUDAGraph:
        state, choice = self.state, self.choice
        kept = [state.tokens, state.positions, state.ranges, choice.counts, choice.seen]
        kept += [state.own.table, state.own.strides, state.cross.table, state.cross.strides, state.logits]
        before = [tensor.clone() for tensor in kept]
        current = torch.cuda.current_stream(state.tokens.device)
        side = torch.cuda.Stream(state.tokens.device)
        side.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(side), torch.inference_mode():
            for addresses in (state.own, state.cross):
                empty = [self._empty] * addresses.table.shape[0]
                addresses.fill(empty, empty)
            state.positions.zero_()
            state.tokens.zero_()
            state.ranges.copy_(torch.tensor([[0, 1]]))
            with compile_only():
                for launch in launches:
                    launch()
            for launch in launches:  # once for real: libraries allocate what they need
                launch()
            for tensor, old in zip(kept, before, strict=True):
                tensor.copy_(old)
            # Not torch.cuda.graph(): that waits for the device, which may be busy with an image meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for launch in launches:
                    launch()
            finally:
                graph.capture_end()
        current.wait_stream(side)
        return graph
