"""Read short prompts by captured graphs, in which each token is a row of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mllama_cli.engine.batch.capacity import MAX_PREFILL_BATCH
from mllama_cli.engine.batch.prefill import Prompt, PromptReader
from mllama_cli.engine.batch.slot_step import SlotStep
from mllama_cli.engine.batch.slots import SlotCaches
from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.cuda.step import State
from mllama_cli.engine.device import batch_stream
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import ImageCache
from mllama_cli.kernels.cuda.attention import staged, tokens_together
from mllama_cli.model.visibility import segments

GRAPH_TOKENS = (16, 32, 64, 128, 256)
"""Rows of a graph. More tokens are read faster by the network's own operations: here each row reads its caches."""

LONG_BEGINNING, MAX_FOLLOWING_TOKENS = 1024, 128
"""Up to so many tokens are read by graphs where a longer beginning of the conversation is cached."""


class CapturedPromptReader(PromptReader):
    """Read up to 256 new tokens of one or several prompts by replaying a graph, which takes the host no time."""

    @torch.inference_mode()
    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model)
        config = model.config.text_config
        self._together = tokens_together(config.num_attention_heads, config.num_key_value_heads)
        rows, device = GRAPH_TOKENS[-1], model.device
        self._state = State(model.network, rows, model.dtype, device, logits=0)
        self._sees = torch.zeros(rows, dtype=torch.bool, device=device)
        self._ends = torch.zeros(MAX_PREFILL_BATCH, dtype=torch.long, device=device)
        """The rows of the prompts' last tokens."""
        self._empty = SlotCaches.empty(model.config.text_config, model.dtype, device)
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor, SlotStep]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Capture a graph that is missing."""
        keys = [(size, sees) for size in GRAPH_TOKENS for sees in (False, bool(self._empty.seen))]
        missing = next((key for key in keys if key not in self._graphs), None)
        if missing is not None:
            rows = slice(missing[0])
            self._clear(rows)
            self._state.positions[rows].zero_()
            self._state.ranges[rows].copy_(staged([0, 1], self._state.ranges))
            self._graph(*missing)
        return missing is not None or super().prepare()

    def reads_at_once(self, prompts: Sequence[Prompt]) -> bool:
        return super().reads_at_once(prompts) or self._captures(prompts)

    def fits(self, prompts: Sequence[Prompt], most: int) -> bool:
        # With more, a GPU that has other work queued meanwhile loses nothing while the host launches operations.
        return self._captures(prompts) if most <= GRAPH_TOKENS[-1] else super().fits(prompts, most)

    @torch.inference_mode()
    def read_together(self, prompts: Sequence[Prompt], images: ImageCache) -> Tensor:
        if not self._captures(prompts):
            return super().read_together(prompts, images)
        ids: list[int] = []
        positions: list[int] = []
        ranges: list[tuple[int, int]] = []
        ends: list[int] = []
        state = self._state
        for prompt in prompts:
            # Rows that read images together are of one prompt: the last token fills them, and is stored several times.
            again = self._rows(prompt) - len(prompt.new)
            rows = slice(len(ids), len(ids) + len(prompt.new) + again)
            state.self_attn.set(rows, prompt.cache.keys, prompt.cache.values)
            seen = self._point_to_images(prompt, rows, images)
            ranges += [*seen, *seen[-1:] * again]
            last = len(prompt.request.ids) - 1
            positions += [*range(prompt.fed, last + 1), *[last] * again]
            ids += [*prompt.new, *prompt.new[-1:] * again]
            ends.append(len(ids) - 1)
        count = len(ends)
        ends += [0] * (MAX_PREFILL_BATCH - count)
        self._ends.copy_(staged(ends, self._ends))
        size = next(size for size in GRAPH_TOKENS if size >= len(ids))
        spare = size - len(ids)
        if spare:
            self._clear(slice(len(ids), size))
        with_images = any(end for _, end in ranges)
        table = [
            [*ids, *[0] * spare],
            [*positions, *[0] * spare],
            *zip(*((start, end or 1) for start, end in ranges), *[(0, 1)] * spare, strict=True),
            [*(end > 0 for _, end in ranges), *[0] * spare],
        ]
        numbers = staged([list(row) for row in table], state.tokens)
        state.tokens[:size].copy_(numbers[0])
        state.positions[:size].copy_(numbers[1])
        state.ranges[:size].copy_(numbers[2:4].T)
        self._sees[:size].copy_(numbers[4])
        logits = self._replay(size, with_images)[:count]
        for prompt in prompts:
            prompt.cache.advance([len(prompt.new)])
        return logits

    def _point_to_images(self, prompt: Prompt, rows: slice, images: ImageCache) -> list[tuple[int, int]]:
        """Return the vision tokens that each new token sees, (0, 0) for none."""
        ranges = [(0, 0)] * len(prompt.new)
        cross = prompt.cross(images)
        if cross is None:
            self._clear_cross(rows)
            return ranges
        self._state.cross_attn.set(rows, *_split(cross.layers))
        for part in segments(prompt.spans, cross.image_tokens[0], prompt.fed, len(prompt.request.ids)):
            ranges[part.row_start : part.row_end] = [(part.key_start, part.key_end)] * (part.row_end - part.row_start)
        return ranges

    def _clear(self, rows: slice) -> None:
        """Let rows read and write memory that is always there."""
        self._state.self_attn.set(rows, self._empty.cache.keys, self._empty.cache.values)
        self._clear_cross(rows)

    def _clear_cross(self, rows: slice) -> None:
        if self._empty.seen:
            self._state.cross_attn.set(rows, *_split(self._empty.seen))

    def _captures(self, prompts: Sequence[Prompt]) -> bool:
        """Return whether these prompts are read by a graph."""
        most = MAX_FOLLOWING_TOKENS if any(prompt.fed > LONG_BEGINNING for prompt in prompts) else GRAPH_TOKENS[-1]
        return len(prompts) <= MAX_PREFILL_BATCH and sum(map(self._rows, prompts)) <= most

    def _rows(self, prompt: Prompt) -> int:
        return -(-len(prompt.new) // self._together) * self._together

    def _replay(self, size: int, with_images: bool) -> Tensor:
        graph, logits, _ = self._graph(size, with_images)
        graph.replay()
        return logits

    def _graph(self, size: int, with_images: bool) -> tuple[torch.cuda.CUDAGraph, Tensor, SlotStep]:
        key = (size, with_images)
        if key not in self._graphs:
            step = SlotStep(self.model.network, self._state, self._sees, size, with_images=with_images, ends=self._ends)
            graph, logits = capture(step.run, batch_stream(self.model.device, "capture"), self._pool)
            self._graphs[key] = (graph, logits, step)
        return self._graphs[key]


def _split(layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the keys and the values of all layers."""
    return [keys for keys, _ in layers], [values for _, values in layers]
