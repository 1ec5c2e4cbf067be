"""Steps of the busy slots as captured graphs: thousands of launches become one."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mllama_cli.engine.batch.cache import SlotCache
from mllama_cli.engine.cuda.operands import attends
from mllama_cli.engine.forward import Network
from mllama_cli.engine.padded_step import StepShape, padded_step
from mllama_cli.engine.streams import captured_steps
from mllama_cli.kernels.ops import upload, use_triton

_Captured = tuple[torch.cuda.CUDAGraph, Tensor, Callable[[Tensor], Tensor]]
"""A graph, where its logits are, and the step, whose buffers it works in."""


class SlotGraphs:
    """A graph for each shape of a step, captured when first needed; all anew when the cache has grown.

    Any of them may be replayed after any other, since logits are read before the next step: so they share one memory
    pool.
    """

    def __init__(self, network: Network, cache: SlotCache) -> None:
        self._network, self._cache = network, cache
        self._ids = torch.zeros(cache.slots, 1, dtype=torch.long, device=cache.lengths.device)
        self._graphs: dict[StepShape, _Captured] = {}
        self._addresses: tuple[tuple[int, int], ...] = ()
        self._pool = torch.cuda.graph_pool_handle()

    def step(self, tokens: Sequence[int], shape: StepShape) -> Tensor:
        """Each busy slot's newest token -> logits [busy, vocab_size], good until the next step."""
        cache = self._cache
        addresses = tuple(
            (tensors[0].data_ptr(), tensors[0].shape[2]) for tensors in (cache.keys, cache.cross_keys) if tensors
        )
        if addresses != self._addresses:
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle()  # the old one ends with its last graph
            self._addresses = addresses
        self._ids[: len(tokens), 0] = upload(torch.tensor(tokens), self._ids.device)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)
        graph, logits, _ = self._graphs[shape]
        graph.replay()
        return logits[: len(tokens)]

    def _capture(self, shape: StepShape) -> _Captured:
        ids = self._ids[: shape.rows]
        current = torch.cuda.current_stream(ids.device)
        side = captured_steps(ids.device)
        side.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(side):
            step = self._step(shape)
            step(ids)  # kernels are built, libraries allocate
            # Not torch.cuda.graph(): that waits for the device, which may be busy with pictures meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = step(ids)
            finally:
                graph.capture_end()
        current.wait_stream(side)
        return graph, logits, step

    def _step(self, shape: StepShape) -> Callable[[Tensor], Tensor]:
        keys = self._cache.keys[0]
        if not (use_triton(keys) and attends(keys.shape[-1], keys.dtype)):
            return partial(padded_step, self._network, self._cache, shape=shape)
        from mllama_cli.engine.batch.slot_step import SlotStep

        return SlotStep(self._network, self._cache, shape).run
