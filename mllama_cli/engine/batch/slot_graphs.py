"""Steps of the busy slots as captured graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mllama_cli.engine.batch.cache import SlotCache
from mllama_cli.engine.batch.slot_step import SlotStep
from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.device import batch_stream
from mllama_cli.engine.forward import Network
from mllama_cli.kernels.ops import upload

GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class StepShape:
    """The first ``rows`` slots, and whether any of them sees an image."""

    rows: int
    with_images: bool

    @classmethod
    def of(cls, cache: SlotCache) -> "StepShape":
        """Return the smallest shape that holds the busy slots.

        Rows beyond them are computed too, to no use; position 0 of their slots is overwritten.
        """
        rows = next((size for size in GRAPH_BATCH_SIZES if size >= cache.busy), cache.slots)
        return cls(min(rows, cache.slots), any(cache.host_cross_lengths[: cache.busy]))


class SlotGraphs:
    """A graph for each shape of a step, captured on first use; all are captured again when the cache has grown.

    Logits are read before the next step, so the graphs share a memory pool.
    """

    def __init__(self, network: Network, cache: SlotCache) -> None:
        self._network, self._cache = network, cache
        self._ids = torch.zeros(cache.slots, 1, dtype=torch.long, device=cache.lengths.device)
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, Tensor, SlotStep]] = {}
        """For each shape its graph, logits, and the step that owns its buffers."""
        self._addresses: tuple[tuple[int, int], ...] = ()
        self._pool = torch.cuda.graph_pool_handle()

    def step(self, tokens: Sequence[int], shape: StepShape) -> Tensor:
        """Return logits [busy, vocab_size] after each busy slot's newest token, valid until the next step."""
        cache = self._cache
        addresses = tuple(
            (tensors[0].data_ptr(), tensors[0].shape[2]) for tensors in (cache.keys, cache.cross_keys) if tensors
        )
        if addresses != self._addresses:
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle()  # the old one is freed with its last graph
            self._addresses = addresses
        self._ids[: len(tokens), 0] = upload(torch.tensor(tokens), self._ids.device)
        if shape not in self._graphs:
            step = SlotStep(self._network, cache, shape.rows, with_images=shape.with_images)
            run = partial(step.run, self._ids[: shape.rows])
            graph, logits = capture(run, batch_stream(self._ids.device, "capture"), self._pool)
            self._graphs[shape] = (graph, logits, step)
        graph, logits, _ = self._graphs[shape]
        graph.replay()
        return logits[: len(tokens)]
