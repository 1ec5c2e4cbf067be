"""Run several new tokens of conversations by captured graphs, in which each token is a row of its own.

Layer by layer, the host takes longer to launch a pass than the device to compute it: on an H200 16 ms for the 11B in
bfloat16 and 29 to 37 in int4, whatever the number of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.engine.cuda.capture import capture
from mllama_cli.engine.cuda.pass_shapes import PASS_TOKENS, PassShape, rows_of, shape_of
from mllama_cli.engine.cuda.rows_step import RowsStep
from mllama_cli.engine.cuda.step import State
from mllama_cli.engine.device import batch_stream
from mllama_cli.engine.forward import MAX_PREFILL_BATCH, Network
from mllama_cli.kernels.cuda.addresses import staged
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import ImageSpan, segments


@dataclass(frozen=True)
class Piece:
    """New ids of a conversation, which follow what its cache holds, and the images of ``spans``."""

    ids: Sequence[int]
    cache: KVCache
    cross: CrossKVCache | None
    spans: Sequence[ImageSpan]


class CapturedPasses:
    """Passes of one network, captured on first use. Rows that no conversation needs are computed to no use."""

    @torch.inference_mode()
    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device, *, float8: bool = False) -> None:
        """``float8`` says that conversations see images in 8 bits."""
        self.network, self.dtype, self.device = network, dtype, device
        rows = PASS_TOKENS[-1]
        self._state = State(network, rows, dtype, device, outputs=0, float8=float8)
        self._sees = torch.zeros(rows, dtype=torch.bool, device=device)
        self._ends = torch.zeros(MAX_PREFILL_BATCH, dtype=torch.int64, device=device)
        self._graphs: dict[PassShape, tuple[torch.cuda.CUDAGraph, Tensor, RowsStep]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __contains__(self, shape: PassShape) -> bool:
        return shape in self._graphs

    @property
    def shapes(self) -> list[PassShape]:
        """All shapes that conversations may need, the smallest first."""
        sees_any = bool(self.network.language_model.config.cross_attention_layers)
        return list(dict.fromkeys(PassShape(rows, sees) for rows in PASS_TOKENS for sees in (False, sees_any)))

    @torch.inference_mode()
    def capture(self, shape: PassShape) -> None:
        """Capture a pass of this shape, unless done."""
        if shape in self._graphs:
            return
        step = RowsStep(
            self.network, self._state, self._sees, shape.rows, with_images=shape.with_images, ends=self._ends
        )
        graph, logits = capture(step.run, batch_stream(self.device, "capture"), self._pool)
        self._graphs[shape] = (graph, logits, step)

    def forget(self) -> None:
        """Let go of all graphs."""
        self._graphs.clear()

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """Feed the pieces' ids, which must fit; return logits [pieces, vocab_size] of their last ones."""
        shape = shape_for(pieces)
        self.capture(shape)
        for piece in pieces:
            piece.cache.reserve(piece.cache.lengths[0] + len(piece.ids))
        try:
            self._fill(pieces, shape.rows)
            graph, logits, _ = self._graphs[shape]
            graph.replay()
        finally:  # while the device computes; no row may go on pointing to caches, which may be freed
            self._state.clear(slice(shape.rows))
            self._ends.zero_()  # a graph of fewer rows may be captured next
        for piece in pieces:
            piece.cache.advance([len(piece.ids)])
        return logits[: len(pieces)].clone()

    def _fill(self, pieces: Sequence[Piece], size: int) -> None:
        """Give the pieces' ids the first of ``size`` rows, whose others stay clear."""
        state, rows = self._state, 0
        table: list[tuple[int, ...]] = []
        ends: list[int] = []
        for piece in pieces:
            mine = slice(rows, rows + rows_of(len(piece.ids)))
            state.self_attn.set(mine, piece.cache.keys, piece.cache.values)
            ranges = _ranges(piece)
            if piece.cross is not None and any(end for _, end in ranges):
                state.set_images(mine, piece.cross.layers)
            filled = piece.cache.lengths[0]
            for position, (id_, (start, end)) in enumerate(zip(piece.ids, ranges, strict=True), filled):
                table.append((id_, position, start, end or 1, end > 0))
            # A group of rows is of one conversation: its last id fills them, and is stored several times.
            table += table[-1:] * (mine.stop - len(table))
            rows = mine.stop
            ends.append(rows - 1)
        table += [(0, 0, 0, 1, False)] * (size - rows)
        numbers = staged(table, state.tokens)
        state.tokens[:size].copy_(numbers[:, 0])
        state.positions[:size].copy_(numbers[:, 1])
        state.ranges[:size].copy_(numbers[:, 2:4])
        self._sees[:size].copy_(numbers[:, 4])
        self._ends.copy_(staged(ends + [0] * (MAX_PREFILL_BATCH - len(ends)), self._ends))


def shape_for(pieces: Sequence[Piece]) -> PassShape:
    """Return the shape of a pass of these pieces, which must fit."""
    sees = any(end for piece in pieces for _, end in _ranges(piece))
    return shape_of(sum(rows_of(len(piece.ids)) for piece in pieces), with_images=sees)


def _ranges(piece: Piece) -> list[tuple[int, int]]:
    """Return the vision tokens that each new token sees, (0, 0) for none."""
    ranges = [(0, 0)] * len(piece.ids)
    if piece.cross is not None:
        first = piece.cache.lengths[0]
        for part in segments(piece.spans, piece.cross.image_tokens[0], first, first + len(piece.ids)):
            ranges[part.row_start : part.row_end] = [(part.key_start, part.key_end)] * (part.row_end - part.row_start)
    return ranges
