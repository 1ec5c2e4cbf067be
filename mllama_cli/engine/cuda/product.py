"""The products of one row with matrices that one kernel reads, and what LoRA adapters add to them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor, nn

from mllama_cli.engine.cuda.operands import format_of, operand
from mllama_cli.kernels.cuda.gated import gated
from mllama_cli.kernels.cuda.gemv_api import gemv, gemv_tile
from mllama_cli.kernels.cuda.layout import interleave, interleave_factor, reinterleave
from mllama_cli.kernels.cuda.low_rank import Change, Following, Sums, add_product, by_blocks
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.quantization.linear import AdaptedLinear


class Product:
    """The matrices of layers that ``gemv`` reads together, for ``batch`` rows, after an RMSNorm with weight ``norm``.

    With ``swiglu`` there are two layers, and the product is SiLU of the first times the second. Where formats differ,
    as in files that leave single layers in 16 bits, neighbours of one format are a part, and a kernel reads each part.
    ``form`` is the interleaving of the activations: the first packed matrix's, or if there is none, the argument.

    Products with adapters need ``take_sums`` before they multiply.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        batch: int,
        dtype: torch.dtype,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        swiglu: bool = False,
        form: int = 1,
    ) -> None:
        self.batch, self.swiglu, self._eps = batch, swiglu, eps
        self.weights = [operand(module) for module in modules]
        self.form = next((factor for factor in map(interleave_factor, self.weights) if factor > 1), form)
        self._norm = None if norm is None else interleave(norm.detach(), self.form)
        runs = [list(run) for _, run in groupby(modules, lambda module: format_of(operand(module)))]
        self._parts = [
            Product(run, batch, dtype, norm=norm, eps=eps, form=self.form) for run in (runs if len(runs) > 1 else [])
        ]
        self._a: Tensor | None = None
        """A [ranks, in] of all layers, in the layout of x; None if the kernel that makes x computes A x."""
        self._ranks = 0
        self._change: Change | None = None
        self._following: Following | None = None
        self._tile = None if self._parts else gemv_tile(self.weights, swiglu)
        if self._tile is not None and any(isinstance(module, AdaptedLinear) for module in modules):
            a, b = _changes(modules, norm)
            self._a, self._ranks = interleave(a, self.form), a.shape[0]
            if not self._tile.takes(b.shape[1]):  # too many for a persistent program's registers
                self._tile = replace(self._tile, programs=0, registers=None)
            self._b = torch.cat(
                [by_blocks(rows, self._tile.rows) for rows in b.split([weight.shape[0] for weight in self.weights])]
            )
        rows, device = sum(weight.shape[0] for weight in self.weights), next(modules[0].parameters()).device
        self._both = torch.empty(batch, rows if self._parts and swiglu else 0, dtype=dtype, device=device)

    @property
    def sums_size(self) -> int:
        """Return how many integers the sums of its adapters take."""
        return Sums.size(self.batch, self._ranks) + sum(part.sums_size for part in self._parts)

    def take_sums(self, memory: Tensor) -> None:
        """Take int64 memory of ``sums_size``, which is zero before each product."""
        for part in self._parts:
            part.take_sums(memory[: part.sums_size])
            memory = memory[part.sums_size :]
        if self._a is not None:
            self._change = Change(self._b, Sums.of(self._a, self.batch, memory))

    def feed(self, following: "Product") -> None:
        """Let the kernel that multiplies also compute A x of the product whose x is its result, if it can.

        Nothing else may be added to the result.
        """
        tile = self._tile
        if tile is None or not isinstance(self.weights[0], PackedWeight):
            return
        if following.ranks and tile.takes(following.ranks):
            a, sums = following.handed_over()
            self._following = Following(by_blocks(a.T, tile.rows), sums)

    @property
    def ranks(self) -> int:
        """Return the number of rows of A in all; 0 without adapters, and if A x is not computed by one kernel."""
        return self._ranks

    def handed_over(self) -> tuple[Tensor, Sums]:
        """Return A [ranks, in], plain and times the norm's weight, and its sums: from now on the caller adds A x."""
        assert self._a is not None
        assert self._change is not None
        a, self._a = reinterleave(self._a, self.form, 1), None
        return a, self._change.sums

    def multiply(
        self,
        x: Tensor,
        out: Tensor,
        *,
        residual: Tensor | None = None,
        factor: Tensor | None = None,
        out_interleave: int = 1,
        residual_interleave: int = 1,
    ) -> None:
        """Write the product to ``out``, as ``gemv`` does, with what adapters add before the factor and SiLU.

        Products in parts have no residual and no factor, and only with SiLU an interleaved result.
        """
        if self._parts and self.swiglu:
            self._multiply_parts(x, self._both)
            gated(self._both, out, out_interleave)
        elif self._parts:
            assert residual is factor is None
            assert out_interleave == 1
            self._multiply_parts(x, out)
        else:
            if self._a is not None and self._change is not None:
                add_product(x, self._a, self._change.sums)
            gemv(
                x, self.weights, out, norm=self._norm, eps=self._eps, residual=residual, factor=factor,
                swiglu=self.swiglu, in_interleave=self.form, out_interleave=out_interleave,
                residual_interleave=residual_interleave, tile=self._tile, change=self._change,
                following=self._following,
            )  # fmt: skip

    def _multiply_parts(self, x: Tensor, out: Tensor) -> None:
        first = 0
        for part in self._parts:
            target = out[:, first : (first := first + sum(weight.shape[0] for weight in part.weights))]
            whole = (
                target if target.is_contiguous() else torch.empty_like(target, memory_format=torch.contiguous_format)
            )
            part.multiply(reinterleave(x, self.form, part.form), whole)
            if whole is not target:
                target.copy_(whole)


def allocate_sums(products: Sequence[Product], device: torch.device) -> Tensor:
    """Return the memory of the sums of all products' adapters, to be zeroed before each step."""
    sizes = [product.sums_size for product in products]
    memory = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
    for product, part in zip(products, memory.split(sizes), strict=True):
        product.take_sums(part)
    return memory


def _changes(modules: Sequence[nn.Module], norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return A [layers * ranks, in], times the norm's weight, and B [out, ranks] of all layers; zeros where none is."""
    adapted = [module for module in modules if isinstance(module, AdaptedLinear)]
    ranks, like = max(module.lora_a.shape[0] for module in adapted), adapted[0]
    a = like.lora_a.new_zeros(len(modules), ranks, like.in_features)
    b = [like.lora_b.new_zeros(operand(module).shape[0], ranks) for module in modules]
    for index, module in enumerate(modules):
        if isinstance(module, AdaptedLinear):
            own = module.lora_a.shape[0]
            a[index, :own] = module.lora_a if norm is None else (module.lora_a.float() * norm.float()).to(a.dtype)
            b[index][:, :own] = module.lora_b
    return a.flatten(0, 1), torch.cat(b)
