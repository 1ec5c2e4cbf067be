"""Quantized layers of a network that is being loaded: stored in the checkpoint, or quantized while loading."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mllama_cli.checkpoint.adapters.merge import Adapters
from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.kernels import ops
from mllama_cli.kernels.packed import PackedWeight, dequantize
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear, linear_layers, replace_linears
from mllama_cli.quantization.opening import scheme_of
from mllama_cli.quantization.plan import refuse_quantized
from mllama_cli.quantization.policy import QuantizeOptions, choose_schemes
from mllama_cli.quantization.rounding import NotFiniteError, quantize_matrix
from mllama_cli.quantization.schemes import GROUP_SIZES, Scheme, scheme_named
from mllama_cli.quantization.sensitivity import ErrorProbe, not_finite

MERGED_SCHEME = Scheme(8, 128)
"""Of packed matrices with which an adapter is merged: in 4 bits, most changes would be smaller than a step."""

MAX_SEPARATE_RANK = 256
"""Rank of a change up to which two more products are faster than a matrix of 8 bits instead of 4."""

_MERGED_BLOCK = 1 << 25
"""Weights that are dequantized at once to merge an adapter into them."""


def repack_linears(
    network: nn.Module, reader: CheckpointReader, wanted: str | None, adapters: Adapters, device: torch.device
) -> dict[str, Scheme]:
    """Replace the layers in a form whose numbers and scales our packed layout holds exactly; return their schemes.

    Those of more bits than ``wanted`` (int4, int8) are left to be quantized. Those that adapters must be merged with
    are left to be read dense, as are those of a code that the device does not multiply.
    """
    most = scheme_named(wanted).bits if wanted is not None else 8
    linears = linear_layers(network)
    schemes = {
        name: scheme_of(matrix.form)
        for name, matrix in reader.contents.matrices()
        if name in linears
        and (f"{name}.weight" not in adapters or _rank(adapters, name))
        and matrix.form.packing is not None
        and matrix.form.packing.bits <= most
        and ops.multiplies_packed(matrix.form.packing.code, device)
    }
    replace_linears(network, schemes, {name: _rank(adapters, name) for name in schemes})
    return schemes


def _rank(adapters: Adapters, module: str) -> int:
    """Return the rank of a change that is kept apart; 0 where it is merged."""
    rank = adapters.rank(f"{module}.weight")
    return rank if rank <= MAX_SEPARATE_RANK else 0


def adapt_linears(network: nn.Module, adapters: Adapters) -> None:
    """Replace the packed layers that adapters change by low rank by ones that keep the change apart."""
    packed = {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLinear)}
    ranks = {name: rank for name in packed if (rank := _rank(adapters, name))}
    replace_linears(network, {name: packed[name].scheme for name in ranks}, ranks)


def round_linears(network: nn.Module, names: set[str]) -> dict[str, Scheme]:
    """Replace these layers, where they are linear, by ones of 8 bits in groups; return their schemes."""
    linears = linear_layers(network)
    schemes = {name: Scheme(8, GROUP_SIZES[0]).fitted(inputs) for name, inputs in linears.items() if name in names}
    replace_linears(network, schemes)
    return schemes


def quantize_linears(
    network: nn.Module, text: MllamaTextConfig, reader: CheckpointReader, wanted: str
) -> dict[str, Scheme]:
    """Replace the layers to quantize while loading, rounded to nearest; return their schemes.

    Raises UsageError for an unknown name and for a checkpoint in our packed layout.
    """
    options = QuantizeOptions(scheme_named(wanted), "rtn")
    refuse_quantized(reader)
    linears = {name: inputs for name, inputs in linear_layers(network).items() if f"{name}.weight" in reader.tensors}
    with SliceReader() as slices:
        schemes = dict(
            choose_schemes(linears, text, options, ErrorProbe(slices, reader.tensors, options.scheme)).schemes
        )
    replace_linears(network, schemes)
    return schemes


def quantize_into(module: nn.Module, name: str, weight: Tensor, scheme: Scheme, file: str) -> None:
    """Quantize one loaded matrix, whole or the part that is kept here, into its replaced layer.

    Raises CheckpointError for NaN or infinity.
    """
    assert isinstance(module, QuantizedLinear)
    try:
        module.fill(quantize_matrix(weight, scheme, "rtn").weight)
    except NotFiniteError:
        raise not_finite(name, file) from None


def dense_shapes(network: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's parameters ``names``, of packed matrices those of the dense ones."""
    parameters, found = dict(network.named_parameters()), {}
    for name in names:
        owner, _, attribute = name.rpartition(".")
        if not attribute.startswith("weight_"):
            found[name] = tuple(parameters[name].shape)
        elif attribute == "weight_packed":
            module = network.get_submodule(owner)
            assert isinstance(module, QuantizedLinear)
            found[f"{owner}.weight"] = (module.out_features, module.in_features)
    return found


def widen_linears(network: nn.Module, adapters: Adapters) -> dict[str, QuantizedLinear]:
    """Replace the other packed layers that adapters change by ones of MERGED_SCHEME; return the old, to read into."""
    stored = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLinear)
        and not isinstance(module, AdaptedLinear)
        and f"{name}.weight" in adapters
    }
    replace_linears(network, {name: MERGED_SCHEME.fitted(module.in_features) for name, module in stored.items()})
    return stored


def merge_into(module: nn.Module, name: str, stored: PackedWeight, adapters: Adapters) -> None:
    """Fill a layer with the ``stored`` matrix of another scheme and the adapters' changes of the weight ``name``."""
    assert isinstance(module, QuantizedLinear)
    rows, inputs = stored.shape
    scheme = MERGED_SCHEME.fitted(inputs)
    step = max(1, _MERGED_BLOCK // inputs)
    parts = []
    for start in range(0, rows, step):
        dense = dequantize(stored.rows(start, start + step))
        merged = adapters.merged(name, dense, stored.scale.dtype, start)
        parts.append(quantize_matrix(merged, scheme, "rtn").weight)
    packed, scales = torch.cat([part.packed for part in parts]), torch.cat([part.scale for part in parts])
    module.fill(PackedWeight(packed, scales, stored.shape, scheme.bits))
