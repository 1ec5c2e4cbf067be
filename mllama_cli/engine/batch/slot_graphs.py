"""Steps of slots as captured graphs of our kernels, and what they read: the half of the slots that is on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.engine.batch.slots import SlotCaches
from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.cuda.operands import unsupported_reason
from mllama_cli.engine.cuda.rows_step import RowsStep
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.device import batch_stream
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.exchange import VocabularyOfRanks
from mllama_cli.kernels.cuda.addresses import staged
from mllama_cli.kernels.cuda.launch import compile_only
from mllama_cli.model.image_kv import token_count

GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class StepShape:
    """The first ``rows`` slots, and whether any of them sees an image."""

    rows: int
    with_images: bool


class SlotGraphs:
    """Addresses, positions and tokens of ``count`` slots on a device, and a graph for each shape of a step.

    A single conversation is stepped by the kernels of ``engine/cuda``, which read plain weights once for one row;
    several by matrix products. Ranks that share a network do the same with their parts, and take rank 0's tokens.
    """

    @torch.inference_mode()
    def __init__(
        self, network: Network, dtype: torch.dtype, device: torch.device, count: int, *, float8: bool = False
    ) -> None:
        """``float8`` says that slots see images in 8 bits."""
        self.network, self.device, self.count = network, device, count
        # The last row is always empty: free slots that a graph computes too have its addresses.
        self.state = State(network, count + 1, dtype, device, float8=float8)
        self._sees = torch.zeros(count + 1, dtype=torch.bool, device=device)
        self._fused = not unsupported_reason(network, dtype, device)
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, Tensor, object]] = {}
        """For each shape its graph, logits, and the step that owns its buffers."""
        self._pool = torch.cuda.graph_pool_handle()
        exchange = network.lm_head.exchange
        self._ranks = exchange.group if isinstance(exchange, VocabularyOfRanks) else None

    @torch.inference_mode()
    def point(self, row: int, caches: SlotCaches) -> None:
        """Let a row read and write these caches."""
        self._point(row, caches)

    @torch.inference_mode()
    def release(self, slot: int, last: int) -> None:
        """Move the last busy slot into one that is free."""
        self._move(last, slot)
        self._move(self.count, last)

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Capture a graph that is missing. The first time, build the kernels of all, at once."""
        sizes = dict.fromkeys(min(size, self.count) for size in GRAPH_BATCH_SIZES)
        sees_any = bool(self.network.language_model.config.cross_attention_layers)
        shapes = [StepShape(rows, sees) for rows in sizes for sees in (False, sees_any)]
        if not self._graphs:
            with compile_only():
                for rows in sizes:
                    RowsStep(self.network, self.state, self._sees, rows, with_images=sees_any).run()
        missing = next((shape for shape in shapes if shape not in self._graphs), None)
        if missing is not None:
            self._graphs[missing] = self._capture(missing)
        return missing is not None

    @torch.inference_mode()
    def step(self, busy: int, with_images: bool) -> Tensor:
        """Return logits [busy, vocab_size] after the newest tokens of the busy slots, valid until the next step."""
        # Of the smallest shape that holds the busy slots; rows beyond them are computed to no use.
        rows = next((size for size in GRAPH_BATCH_SIZES if size >= busy), self.count)
        shape = StepShape(min(rows, self.count), with_images)
        if self._ranks is not None:
            self._ranks.broadcast(self.state.tokens)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)
        graph, logits, _ = self._graphs[shape]
        graph.replay()
        return logits[:busy]

    @torch.inference_mode()
    def advance(self, busy: int) -> None:
        """Count the token that a step has fed to each busy slot."""
        self.state.positions[:busy].add_(1)

    def _capture(self, shape: StepShape) -> tuple[torch.cuda.CUDAGraph, Tensor, object]:
        stream, network = batch_stream(self.device, "capture"), self.network
        if shape.rows == 1 and self._fused:
            state = self.state.first(1)
            step = DecodeStep(network, state, with_images=shape.with_images)
            graph, _ = capture(step.run, stream, self._pool)
            return graph, state.logits, step
        rows_step = RowsStep(network, self.state, self._sees, shape.rows, with_images=shape.with_images)
        graph, logits = capture(rows_step.run, stream, self._pool)
        return graph, logits, rows_step

    def _point(self, row: int, caches: SlotCaches) -> None:
        state = self.state
        state.self_attn.set(row, caches.cache.keys, caches.cache.values)
        state.positions[row].fill_(caches.length)
        if caches.seen:
            state.set_images(row, caches.seen)
            state.ranges[row].copy_(staged([0, token_count(caches.seen)], state.ranges))
        else:
            state.clear_images(row)
        self._sees[row].fill_(bool(caches.seen))

    def _move(self, source: int, target: int) -> None:
        state = self.state
        state.self_attn.move(source, target)
        state.cross_attn.move(source, target)
        for tensor in (state.positions, state.ranges, self._sees):
            tensor[target].copy_(tensor[source])
