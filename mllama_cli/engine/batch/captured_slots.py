"""Steps of the busy slots as captured graphs of our kernels."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.slot_step import SlotStep
from mllama_cli.engine.batch.slots import SlotCaches, Slots
from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.cuda.operands import unsupported_reason
from mllama_cli.engine.cuda.step import DecodeStep, State
from mllama_cli.engine.device import batch_stream
from mllama_cli.engine.model import LoadedModel
from mllama_cli.kernels.cuda.attention import staged
from mllama_cli.kernels.cuda.launch import compile_only
from mllama_cli.kernels.ops import best_allowed
from mllama_cli.processing.grammar import Constraint

GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class StepShape:
    """The first ``rows`` slots, and whether any of them sees an image."""

    rows: int
    with_images: bool


class CapturedSlots(Slots):
    """Slots whose addresses, positions and tokens are on the device, read by a graph for each shape of a step.

    A single conversation is stepped by the kernels of ``engine/cuda``, which read plain weights once for one row;
    several by matrix products.
    """

    @torch.inference_mode()
    def __init__(self, model: LoadedModel, count: int) -> None:
        super().__init__(model, count)
        device = model.device
        # The last row is always empty: free slots that a graph computes too have its addresses.
        self._state = State(model.network, count + 1, model.dtype, device)
        self._sees = torch.zeros(count + 1, dtype=torch.bool, device=device)
        self._tokens = self._state.tokens
        self._empty = SlotCaches.empty(model.config.text_config, model.dtype, device)
        for row in range(count + 1):
            self._point(row, self._empty)
        self._fused = not unsupported_reason(model.network, model.dtype, device)
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, Tensor, object]] = {}
        """For each shape its graph, logits, and the step that owns its buffers."""
        self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def admit(
        self,
        caches: SlotCaches,
        sampling: Sampling,
        prompt: Iterable[int],
        constraint: Constraint | None = None,
    ) -> None:
        super().admit(caches, sampling, prompt, constraint)
        self._point(self.busy - 1, caches)

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        last = self.busy - 1
        super().release(slot)
        self._move(last, slot)
        self._move(self.count, last)

    @torch.inference_mode()
    def moved(self, slot: int) -> None:
        self._point(slot, self.caches[slot])

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Capture a graph that is missing. The first time, build the kernels of all, at once."""
        sizes = dict.fromkeys(min(size, self.count) for size in GRAPH_BATCH_SIZES)
        shapes = [StepShape(rows, sees) for rows in sizes for sees in (False, bool(self._empty.seen))]
        if not self._graphs:
            with compile_only():
                for rows in sizes:
                    SlotStep(
                        self.model.network, self._state, self._sees, rows, with_images=bool(self._empty.seen)
                    ).run()
                best_allowed(self._state.logits[: self.count], self.sampler.masks, self.sampler.all_rows)
        missing = next((shape for shape in shapes if shape not in self._graphs), None)
        if missing is not None:
            self._graphs[missing] = self._capture(missing)
        return missing is not None

    def _forward(self) -> Tensor:
        shape = self._shape()
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)
        graph, logits, _ = self._graphs[shape]
        graph.replay()
        return logits[: self.busy]

    def _advance(self) -> None:
        super()._advance()
        self._state.positions[: self.busy].add_(1)

    def _shape(self) -> StepShape:
        """Return the smallest shape that holds the busy slots; rows beyond them are computed to no use."""
        rows = next((size for size in GRAPH_BATCH_SIZES if size >= self.busy), self.count)
        return StepShape(min(rows, self.count), any(caches.seen for caches in self.caches))

    def _capture(self, shape: StepShape) -> tuple[torch.cuda.CUDAGraph, Tensor, object]:
        stream, network = batch_stream(self.model.device, "capture"), self.model.network
        if shape.rows == 1 and self._fused:
            state = self._state.first(1)
            step = DecodeStep(network, state, with_images=shape.with_images)
            graph, _ = capture(step.run, stream, self._pool)
            return graph, state.logits, step
        slot_step = SlotStep(network, self._state, self._sees, shape.rows, with_images=shape.with_images)
        graph, logits = capture(slot_step.run, stream, self._pool)
        return graph, logits, slot_step

    def _point(self, row: int, caches: SlotCaches) -> None:
        """Let a row read and write these caches."""
        state, seen = self._state, caches.seen or self._empty.seen
        state.self_attn.set(row, caches.cache.keys, caches.cache.values)
        tokens = 1
        if seen:
            state.cross_attn.set(row, [keys for keys, _ in seen], [values for _, values in seen])
            tokens = seen[0][0].shape[2] if caches.seen else 1
        numbers = staged([caches.length, 0, tokens], state.positions)
        state.positions[row].copy_(numbers[0])
        state.ranges[row].copy_(numbers[1:])
        self._sees[row].fill_(bool(caches.seen))

    def _move(self, source: int, target: int) -> None:
        state = self._state
        state.self_attn.move(source, target)
        state.cross_attn.move(source, target)
        for tensor in (state.positions, state.ranges, self._sees):
            tensor[target].copy_(tensor[source])
