"""Multiply one row by a matrix at memory speed: the cost of a decoded token.

Every program takes a few rows of the matrix over their whole length. Everything around the product is fused into it:
the RMSNorm before it (each program reads all of x anyway, so the sum of squares is free), SiLU of the gate, and the
residual after it. Under programmatic dependent launch a program loads its first weights before the kernel that makes x
has finished, so memory never idles between kernels.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from mllama_cli.kernels.codes import TABLES
from mllama_cli.kernels.cuda.gemv import gemv_kernel
from mllama_cli.kernels.cuda.gemv_tiles import GemvTile, choose_gemv_tile
from mllama_cli.kernels.cuda.halves import pair_table
from mllama_cli.kernels.cuda.launch import capability, launch, multiprocessors
from mllama_cli.kernels.cuda.layout import interleave_factor
from mllama_cli.kernels.cuda.low_rank import Change, Following
from mllama_cli.kernels.cuda.packed_gemv import packed_gemv_kernel
from mllama_cli.kernels.cuda.persistent_gemv import persistent_gemv_kernel
from mllama_cli.kernels.packed import PackedWeight


def supports(weight: Tensor | PackedWeight) -> bool:
    """Return whether ``gemv`` takes this weight."""
    if not isinstance(weight, PackedWeight):
        return weight.is_contiguous()
    quad = 4 * 32 // weight.bits
    return weight.shape[1] % quad == 0 and weight.group_size % quad == 0


def gemv(
    x: Tensor,
    weights: Sequence[Tensor | PackedWeight],
    out: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    factor: Tensor | None = None,
    swiglu: bool = False,
    in_interleave: int = 1,
    out_interleave: int = 1,
    residual_interleave: int = 1,
    tile: GemvTile | None = None,
    change: Change | None = None,
    following: Following | None = None,
) -> None:
    """Write residual + factor * (RMSNorm(x [B, in]) @ W.T) to out [B, rows of W], W being up to three matrices stacked.

    With ``swiglu`` there are two matrices, and the product is silu(x @ first.T) * (x @ second.T). ``factor`` is one
    float32 number. ``norm`` is interleaved as x is. Weights are all plain or all packed alike. Every row of x reads the
    weights again, so this is for one row or very few.

    Packed matrices may have a ``change``, which is added to their products, and add to the sums of a ``following``
    product what ``out`` gives. Both are made for the rows of ``tile``.
    """
    first = weights[0]
    if isinstance(first, PackedWeight):
        packed = [w for w in weights if isinstance(w, PackedWeight)]
        assert len(packed) == len(weights)
        assert in_interleave == interleave_factor(first)
        assert all((w.bits, w.group_size, w.code) == (first.bits, first.group_size, first.code) for w in packed)
    else:
        assert change is None
        assert following is None
        packed = []
    shapes = [(w.shape[0], w.shape[1]) for w in weights]
    size_in = shapes[0][1]
    rows = [shape[0] for shape in shapes] + [0] * (3 - len(shapes))
    if tile is None:
        tile = gemv_tile(weights, swiglu)
    blocks = triton.cdiv(rows[0], tile.rows) if swiglu else sum(triton.cdiv(r, tile.rows) for r in rows)
    flags = {
        "OUT_INTERLEAVE": out_interleave, "RESIDUAL_INTERLEAVE": residual_interleave, "SWIGLU": swiglu,
        "HAS_NORM": norm is not None, "HAS_RESIDUAL": residual is not None, "HAS_FACTOR": factor is not None,
        "EARLY": isinstance(first, PackedWeight),  # measured: plain weights saturate memory by themselves
    }  # fmt: skip
    grid = (blocks, x.shape[0])
    around = (x, x if norm is None else norm, out if residual is None else residual, x if factor is None else factor)
    shape = (*rows, size_in)
    if isinstance(first, PackedWeight):
        words = [w.packed for w in packed] + [first.packed] * (3 - len(packed))
        scales = [w.scale for w in packed] + [first.scale] * (3 - len(packed))
        adapters = (
            *((x, x, 1.0) if change is None else (change.b, change.sums.copies, change.sums.unit)),
            *((x, x, 1.0) if following is None else (following.a, following.sums.copies, 1 / following.sums.unit)),
        )  # fmt: skip
        halves = first.code != "int" and x.dtype != torch.float32
        flags |= {
            "HALVES": halves,
            "RANKS": 0 if change is None else change.sums.ranks // len(weights),
            "NEXT_RANKS": 0 if following is None else following.sums.ranks,
        }
        pairs = pair_table(first.code, x.device) if halves and first.code in TABLES else x
        operands = (*around, *words, *scales, out, *adapters, pairs, eps)
        form = (*shape, first.bits, first.code, first.group_size, tile.rows, tile.columns)
        if tile.programs:
            programs = min(blocks, tile.programs * multiprocessors(x.device))
            launch(
                persistent_gemv_kernel, (programs, x.shape[0]), *operands, programs, *form, tile.chunks, tile.staged,
                device=x.device, warps=tile.warps, registers=tile.registers, CAPABILITY=capability(x.device), **flags,
            )  # fmt: skip
        else:
            launch(
                packed_gemv_kernel, grid, *operands, *form,
                device=x.device, warps=tile.warps, registers=tile.registers, CAPABILITY=capability(x.device), **flags,
            )  # fmt: skip
    else:
        plain = [*weights, *[first] * (3 - len(weights))]
        launch(
            gemv_kernel, grid, *around, *plain, out, eps, *shape, tile.rows, tile.columns,
            device=x.device, warps=tile.warps, IN_INTERLEAVE=in_interleave, **flags,
        )  # fmt: skip


def gemv_tile(weights: Sequence[Tensor | PackedWeight], swiglu: bool) -> GemvTile:
    """Return the tile that ``gemv`` chooses for these weights."""
    return choose_gemv_tile(weights[0], [(weight.shape[0], weight.shape[1]) for weight in weights], swiglu)
