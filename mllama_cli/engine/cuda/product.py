"""The products of one row with matrices that one kernel reads, and what LoRA adapters add to them."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from mllama_cli.engine.cuda.operands import format_of, operand
from mllama_cli.kernels.cuda.gated import gated
from mllama_cli.kernels.cuda.gemv_api import GemvTile, gemv
from mllama_cli.kernels.cuda.layout import interleave, interleave_factor, reinterleave
from mllama_cli.quantization.linear import AdaptedLinear


class Product:
    """The matrices of layers that ``gemv`` reads together, for ``batch`` rows.

    Where formats differ, as in files that leave single layers in 16 bits, neighbours of one format are a part, and a
    kernel reads each part. ``form`` is the interleaving of the activations: the first packed matrix's, or if there is
    none, the argument.
    """

    def __init__(self, modules: Sequence[nn.Module], batch: int, dtype: torch.dtype, form: int = 1) -> None:
        self.weights = [operand(module) for module in modules]
        self.form = next((factor for factor in map(interleave_factor, self.weights) if factor > 1), form)
        runs = [list(run) for _, run in groupby(modules, lambda module: format_of(operand(module)))]
        self._parts = [Product(run, batch, dtype, self.form) for run in runs] if len(runs) > 1 else []
        self._a: Tensor | None = None
        adapted = [module for module in modules if isinstance(module, AdaptedLinear)]
        if adapted and not self._parts:
            a, b = _changes(modules, adapted)
            self._a, self._b = interleave(a, self.form), b
            self._between = torch.empty(batch, b.shape[1], dtype=torch.float32, device=b.device)
        rows, device = sum(weight.shape[0] for weight in self.weights), next(modules[0].parameters()).device
        self._sums = torch.empty(batch, rows if self._parts or adapted else 0, dtype=dtype, device=device)

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
        """Write the product to ``out``, as ``gemv`` does, with what adapters add before the factor and SiLU.

        Products in parts have no residual and no factor, and only with ``swiglu`` an interleaved result.
        """
        if swiglu and (self._parts or self._a is not None):
            self.multiply(x, self._sums, norm=norm, eps=eps)
            gated(self._sums, out, out_interleave)
        elif self._parts:
            assert residual is factor is None
            assert out_interleave == 1
            self._multiply_parts(x, out, norm, eps)
        else:
            gemv(
                x, self.weights, out, norm=norm, eps=eps, residual=residual, factor=factor, swiglu=swiglu,
                in_interleave=self.form, out_interleave=out_interleave, residual_interleave=residual_interleave,
            )  # fmt: skip
            if self._a is not None:
                gemv(x, [self._a], self._between, norm=norm, eps=eps, tile=_tile(self._a, rows=1))
                gemv(
                    self._between, [self._b], out, residual=out, factor=factor,
                    out_interleave=out_interleave, residual_interleave=out_interleave, tile=_tile(self._b, rows=64),
                )  # fmt: skip

    def _multiply_parts(self, x: Tensor, out: Tensor, norm: Tensor | None, eps: float) -> None:
        first = 0
        for part in self._parts:
            target = out[:, first : (first := first + sum(weight.shape[0] for weight in part.weights))]
            whole = (
                target if target.is_contiguous() else torch.empty_like(target, memory_format=torch.contiguous_format)
            )
            scales = None if norm is None else reinterleave(norm, self.form, part.form)
            part.multiply(reinterleave(x, self.form, part.form), whole, norm=scales, eps=eps)
            if whole is not target:
                target.copy_(whole)


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
