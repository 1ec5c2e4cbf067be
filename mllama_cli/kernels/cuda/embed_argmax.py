"""Start and end of a decode step: embedding and rotation of a token, and argmax of the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mllama_cli.kernels.cuda.launch import gdc_launch_dependents, gdc_wait, launch
from mllama_cli.kernels.cuda.layout import offset_of

EMBED_ARGMAX_BLOCK = 1024


@triton.jit
def embed_kernel(
    tokens, positions, table, frequencies, out, rotation,
    SIZE: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, INTERLEAVE: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    gdc_launch_dependents(PDL)
    part = tl.program_id(0)
    batch = tl.program_id(1)
    gdc_wait(PDL)
    # Token -1 means that logits were not finite. Nothing before the table may be read: it may be in host memory.
    token = tl.maximum(tl.load(tokens + batch), 0).to(tl.int64)
    index = part * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(table + token * SIZE + index, mask=index < SIZE, other=0.0)
    tl.store(out + batch * SIZE + offset_of(index, SIZE, INTERLEAVE), row, mask=index < SIZE)
    if part == 0:
        pair = tl.arange(0, WIDTH)
        angle = tl.load(positions + batch).to(tl.float32) * tl.load(frequencies + pair, mask=pair < HALF, other=0.0)
        tl.store(rotation + batch * 2 * HALF + pair, tl.cos(angle), mask=pair < HALF)
        tl.store(rotation + batch * 2 * HALF + HALF + pair, tl.sin(angle), mask=pair < HALF)


@triton.jit
def block_argmax_kernel(
    logits, words, rows, best, where,
    SIZE: tl.constexpr, WORDS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Store a block's highest logit and its token; infinity if any logit is NaN. Masked ones do not count."""
    gdc_launch_dependents(PDL)
    part = tl.program_id(0)
    batch = tl.program_id(1)
    gdc_wait(PDL)
    index = part * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(logits + batch * SIZE + index, mask=index < SIZE, other=float("-inf")).to(tl.float32)
    if MASKED:
        row = tl.load(rows + batch)
        if row >= 0:
            word = tl.load(words + row * WORDS + index // 32, mask=index < SIZE, other=0)
            score = tl.where((word >> (index % 32)) & 1 != 0, score, float("-inf"))
    score = tl.where(score == score, score, float("inf"))
    top = tl.max(score, axis=0)
    tl.store(best + batch * BLOCKS + part, top)
    tl.store(where + batch * BLOCKS + part, tl.min(tl.where(score == top, index, SIZE), axis=0))


@triton.jit
def argmax_kernel(
    best, where, tokens, positions, SIZE: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr,
    ADVANCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Store the first of the best tokens, -1 if logits are not finite, and may advance the row's position by one."""
    gdc_launch_dependents(PDL)
    batch = tl.program_id(0)
    gdc_wait(PDL)
    part = tl.arange(0, WIDTH)
    score = tl.load(best + batch * BLOCKS + part, mask=part < BLOCKS, other=float("-inf"))
    index = tl.load(where + batch * BLOCKS + part, mask=part < BLOCKS, other=SIZE)
    top = tl.max(score, axis=0)
    token = tl.min(tl.where(score == top, index, SIZE), axis=0)
    finite = (top < float("inf")) & (top > float("-inf"))
    tl.store(tokens + batch, tl.where(finite, token, -1))
    if ADVANCE:
        tl.store(positions + batch, tl.load(positions + batch) + 1)


def embed(
    tokens: Tensor,
    positions: Tensor,
    table: Tensor,
    frequencies: Tensor,
    out: Tensor,
    rotation: Tensor,
    out_interleave: int = 1,
) -> None:
    """Write rows of the table to out [B, hidden], and cosines and sines at the positions to rotation.

    ``rotation`` is float32 [B, 2, head_dim / 2]. The table may be in pinned host memory, read over the bus.
    """
    size, half = table.shape[1], frequencies.shape[0]
    launch(
        embed_kernel, (triton.cdiv(size, EMBED_ARGMAX_BLOCK), out.shape[0]),
        tokens, positions, table, frequencies, out, rotation, size, half, triton.next_power_of_2(half),
        out_interleave, EMBED_ARGMAX_BLOCK, device=out.device, warps=4,
    )  # fmt: skip


class Argmax:
    """Greedy choice for ``batch`` rows of ``size`` logits, with its buffers."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.size, self.blocks = size, triton.cdiv(size, EMBED_ARGMAX_BLOCK)
        self._best = torch.empty(batch, self.blocks, dtype=torch.float32, device=device)
        self._where = torch.empty(batch, self.blocks, dtype=torch.int32, device=device)

    def __call__(
        self,
        logits: Tensor,
        tokens: Tensor,
        positions: Tensor | None = None,
        masks: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Write the best tokens of logits [B, size] to tokens [B], and add 1 to positions [B].

        ``masks`` are the words and rows of ``ops.best_allowed``.
        """
        batch, device = logits.shape[0], logits.device
        words, rows = masks if masks is not None else (logits, logits)
        launch(
            block_argmax_kernel, (self.blocks, batch), logits, words, rows, self._best, self._where,
            self.size, words.shape[1], self.blocks, EMBED_ARGMAX_BLOCK, masks is not None, device=device, warps=4,
        )  # fmt: skip
        launch(
            argmax_kernel, (batch,), self._best, self._where, tokens, tokens if positions is None else positions,
            self.size, self.blocks, triton.next_power_of_2(self.blocks), positions is not None, device=device, warps=4,
        )  # fmt: skip


def best_allowed(logits: Tensor, words: Tensor, rows: Tensor) -> Tensor:
    """Return the best allowed tokens int64 [B] of logits [B, size], as ``ops.best_allowed`` says."""
    batch, size = logits.shape
    tokens = torch.empty(batch, dtype=torch.int64, device=logits.device)
    Argmax(batch, size, logits.device)(logits.contiguous(), tokens, masks=(words, rows))
    return tokens
