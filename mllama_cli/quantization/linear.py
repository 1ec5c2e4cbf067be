"""A linear layer with a packed matrix, and one with a LoRA adapter over it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mllama_cli.core.errors import CheckpointError
from mllama_cli.kernels.ops import linear, linear_add, quantized_linear
from mllama_cli.kernels.packed import PackedWeight, scale_part
from mllama_cli.model.layers import Projection
from mllama_cli.quantization.schemes import Scheme

DAMAGED_HINT = "Download or copy the file again, or quantize the model again."


class QuantizedLinear(Projection):
    """nn.Linear with the parameters of a compressed-tensors checkpoint; on the meta device until filled.

    ``weight_packed`` int32 [out, words], ``weight_scale`` [out, groups] in its stored dtype, ``weight_shape``
    int64 [2].
    """

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, scheme: Scheme, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scheme = inputs, outputs, scheme
        self._held: PackedWeight | None = None
        self._kept: tuple[slice, slice] | None = None
        """The rows and columns of the matrix ``whole`` (out, in) that are here; None for all."""
        self.whole = (outputs, inputs)
        self._empty(bias=bias)

    def _empty(self, *, bias: bool = False) -> None:
        outputs, inputs = self.out_features, self.in_features
        self.weight_packed = _empty(outputs, self.scheme.words(inputs), dtype=torch.int32)
        self.weight_scale = _empty(outputs, self.scheme.groups(inputs))
        self.weight_shape = _empty(2, dtype=torch.int64)
        self.bias = _empty(outputs) if bias else None

    @property
    def packed(self) -> PackedWeight:
        """Return the parameters as a matrix, cached while they are the same so that it is checked once."""
        packed, scale, held = self.weight_packed, self.weight_scale, self._held
        if held is None or held.packed is not packed or held.scale is not scale:
            self._held = held = PackedWeight(
                packed, scale, (self.out_features, self.in_features), self.scheme.bits, self.scheme.code
            )
        return held

    def cut(self, rows: slice, columns: slice) -> None:
        """Keep only these rows and columns of the matrix, while it is on the meta device."""
        self._kept = (rows, columns)
        self.whole = (self.out_features, self.in_features)
        self.out_features, self.in_features = rows.stop - rows.start, columns.stop - columns.start
        self.scheme = self.scheme.of_columns(columns)
        self._empty()

    def product(self, x: Tensor) -> Tensor:
        out = quantized_linear(x, self.packed, exact=self.exact)
        return out if self.bias is None else out + self.bias

    def fill(self, packed: PackedWeight) -> None:
        """Take a matrix that has just been quantized, whole or the part that is kept of it."""
        if self._kept is not None and packed.shape == self.whole:
            packed = packed.part(*self._kept)
        self.weight_packed = nn.Parameter(packed.packed, requires_grad=False)
        self.weight_scale = nn.Parameter(packed.scale, requires_grad=False)
        self.weight_shape = nn.Parameter(torch.tensor(packed.shape), requires_grad=False)

    def fill_checked(self, name: str, packed: PackedWeight, device: torch.device) -> None:
        """Take a whole matrix of a file, called ``name``, with our integers and scales. Raises CheckpointError."""
        rows = slice(0, self.whole[0])
        self._require_positive(f"{name}_scale", packed.scale[rows])
        part = PackedWeight(packed.packed[rows], packed.scale[rows], self.whole, packed.bits, packed.code)
        if self._kept is not None:
            part = part.part(*self._kept)
        self.fill(PackedWeight(part.packed.to(device), part.scale.to(device), part.shape, part.bits, part.code))

    def checked(self, name: str, tensor: Tensor) -> Tensor:
        """Return a file's tensor for the parameter ``name``, cut to the rows of config.json.

        Fine-tuning may have added rows. Of a layer that is cut, ``weight_packed`` is the part that is kept, and the
        others are whole. Raises CheckpointError, with the name, for scales of integers that are not positive numbers
        and for the ``weight_shape`` of another matrix.
        """
        attribute = name.rpartition(".")[2]
        outputs, wanted = self.whole
        if attribute == "weight_shape":
            rows, inputs = tensor.tolist()
            if rows < outputs or inputs != wanted:
                raise CheckpointError(
                    f"{name} says [{rows}, {inputs}], config.json asks for [{outputs}, {wanted}]", DAMAGED_HINT
                )
            return torch.tensor((self.out_features, self.in_features))
        if attribute == "weight_packed":
            return tensor[: self.out_features].contiguous()
        tensor = tensor[:outputs]
        self._require_positive(name, tensor)
        if self._kept is not None:
            tensor = scale_part(tensor[self._kept[0]], self._kept[1], wanted).contiguous()
        return tensor

    def _require_positive(self, name: str, scale: Tensor) -> None:
        if self.scheme.code != "int":  # other tools' scales may be zero where all weights are
            return
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise CheckpointError(
                f"{name} holds scales that are not positive numbers: the file is damaged", DAMAGED_HINT
            )


class AdaptedLinear(QuantizedLinear):
    """A packed matrix W whose change by adapters is multiplied separately: W x + B (A x).

    Packing the sum again would lose most of the change in 4 bits. ``lora_a`` [rank, in] and ``lora_b`` [out, rank],
    which includes the adapters' scales, are plain matrices.
    """

    def __init__(self, inputs: int, outputs: int, scheme: Scheme, rank: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, scheme, bias=bias)
        self.lora_a = _empty(rank, inputs)
        self.lora_b = _empty(outputs, rank)

    def cut(self, rows: slice, columns: slice) -> None:
        super().cut(rows, columns)
        self.lora_a = _empty(self.lora_a.shape[0], self.in_features)
        self.lora_b = _empty(self.out_features, self.lora_b.shape[1])

    def product(self, x: Tensor) -> Tensor:
        change = linear(x, self.lora_a, exact=self.exact)
        return linear_add(change, self.lora_b, None, super().product(x), exact=self.exact)

    def fill_change(self, a: Tensor, b: Tensor) -> None:
        """Take the matrices of the adapters, for all rows and columns."""
        if self._kept is not None:
            rows, columns = self._kept
            a, b = a[:, columns].contiguous(), b[rows].contiguous()
        self.lora_a, self.lora_b = (nn.Parameter(each, requires_grad=False) for each in (a, b))


def _empty(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device="meta"), requires_grad=False)


def linear_layers(network: nn.Module) -> dict[str, int]:
    """Return the number of inputs of each linear layer, by name."""
    return {name: module.in_features for name, module in network.named_modules() if isinstance(module, nn.Linear)}


def replace_linears(network: nn.Module, schemes: Mapping[str, Scheme], ranks: Mapping[str, int] | None = None) -> None:
    """Replace the named linear layers, packed or not, by QuantizedLinears, with ``ranks`` by AdaptedLinears."""
    for name, scheme in schemes.items():
        owner, _, attribute = name.rpartition(".")
        old = network.get_submodule(name)
        assert isinstance(old, nn.Linear | QuantizedLinear)
        rank, shape, bias = (ranks or {}).get(name, 0), (old.in_features, old.out_features), old.bias is not None
        new = AdaptedLinear(*shape, scheme, rank, bias=bias) if rank else QuantizedLinear(*shape, scheme, bias=bias)
        setattr(network.get_submodule(owner), attribute, new.train(old.training))
