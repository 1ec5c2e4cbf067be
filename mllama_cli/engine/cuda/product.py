"""The products of one row with matrices that one kernel reads, and what LoRA adapters add to them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllama_cli.engine.cuda.operands import operand
from mllama_cli.kernels.cuda.gemv_api import GemvTile, gemv
from mllama_cli.kernels.cuda.layout import interleave, interleave_factor
from mllama_cli.quantization.linear import AdaptedLinear


class Product:
    """The matrices of layers that ``gemv`` reads together, for ``batch`` rows.

    ``form`` is the interleaving of the activations that they take.
    """

    def __init__(self, modules: Sequence[nn.Module], batch: int) -> None:
        self.weights = [operand(module) for module in modules]
        self.form = interleave_factor(self.weights[0])
        self._a: Tensor | None = None
        adapted = [module for module in modules if isinstance(module, AdaptedLinear)]
        if adapted:
            a, b = _changes(modules, adapted)
            self._a, self._b = interleave(a, self.form), b
            self._between = torch.empty(batch, b.shape[1], dtype=torch.float32, device=b.device)
            self._sums = torch.empty(batch, b.shape[0], dtype=b.dtype, device=b.device)

    def norm(self, weight: Tensor) -> Tensor:
        """Return the weight of the RMSNorm before this product as ``multiply`` takes it."""
        return interleave(weight.detach(), self.form)

    def multiply(
        self,
        x: Tensor,
        out: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        factor: Tensor | None = None,
        swiglu: bool = False,
        out_interleave: int = 1,
        residual_interleave: int = 1,
    ) -> None:
        """Write the product to ``out``, as ``gemv`` does, with what adapters add before the factor and SiLU."""
        if self._a is None:
            gemv(
                x, self.weights, out, norm=norm, eps=eps, residual=residual, factor=factor, swiglu=swiglu,
                in_interleave=self.form, out_interleave=out_interleave, residual_interleave=residual_interleave,
            )  # fmt: skip
            return
        total = self._sums if swiglu else out
        gemv(
            x, self.weights, total, norm=norm, eps=eps, residual=residual, factor=factor,
            in_interleave=self.form, out_interleave=out_interleave, residual_interleave=residual_interleave,
        )  # fmt: skip
        gemv(x, [self._a], self._between, norm=norm, eps=eps, tile=_tile(self._a, rows=1))
        gemv(
            self._between, [self._b], total, residual=total, factor=factor,
            out_interleave=out_interleave, residual_interleave=out_interleave, tile=_tile(self._b, rows=64),
        )  # fmt: skip
        if swiglu:
            # Interleaving runs over both halves, so each residue holds its elements of one, then of the other.
            gate, up = total.view(len(out), out_interleave, 2, -1).unbind(2)
            torch.mul(F.silu(gate), up, out=out.view(len(out), out_interleave, -1))


def _changes(modules: Sequence[nn.Module], adapted: Sequence[AdaptedLinear]) -> tuple[Tensor, Tensor]:
    """Return A [ranks, in] of all layers, and B [out, ranks], zero where a row belongs to another layer."""
    like = adapted[0].lora_b
    second = [
        module.lora_b if isinstance(module, AdaptedLinear) else like.new_zeros(operand(module).shape[0], 0)
        for module in modules
    ]
    return torch.cat([module.lora_a for module in adapted]).detach(), torch.block_diag(*second).detach()


def _tile(matrix: Tensor, *, rows: int) -> GemvTile:
    """Return a tile for a matrix with few rows, or few columns."""
    columns = min(1 << (matrix.shape[1] - 1).bit_length(), 2048)
    return GemvTile(rows, max(columns, 16), min(max(rows * columns // 512, 1), 8))
