"""Quantized layers of a network that is being loaded: stored in the checkpoint, or quantized while loading."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mllama_cli.checkpoint.adapters.merge import Adapters
from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.config import MllamaTextConfig, section
from mllama_cli.core.errors import CheckpointError
from mllama_cli.kernels.packed import PackedWeight, dequantize
from mllama_cli.quantization.config_groups import ConfigGroups
from mllama_cli.quantization.linear import QuantizedLinear, replace_linears
from mllama_cli.quantization.plan import linear_layers, refuse_quantized
from mllama_cli.quantization.policy import QuantizeOptions, choose_schemes
from mllama_cli.quantization.rounding import NotFiniteError, quantize_matrix
from mllama_cli.quantization.schemes import Scheme, scheme_named
from mllama_cli.quantization.sensitivity import ErrorProbe, not_finite

MERGED_SCHEME = Scheme(8, 128)
"""Of packed matrices that an adapter changes: in 4 bits, most changes would be smaller than a step."""

_MERGED_BLOCK = 1 << 25
"""Weights that are dequantized at once to merge an adapter into them."""


def load_quantized_linears(network: nn.Module, config: Mapping[str, Any]) -> None:
    """Replace the layers of an empty network that are packed according to config.json. Raises CheckpointError."""
    declared = section(config, "quantization_config")
    if not declared:
        return
    groups = ConfigGroups.from_dict(declared)
    if any("Embedding" in targets for _, targets in groups.groups):
        raise CheckpointError("config.json: quantized embeddings are not supported")
    schemes = {}
    for name, inputs in linear_layers(network).items():
        scheme = groups.scheme_of(name)
        if scheme is None:
            continue
        if not scheme.divides(inputs):
            raise CheckpointError(
                f"config.json: groups of {scheme.group_size} do not divide the {inputs} inputs of {name}",
                "The file may be damaged or made for another model.",
            )
        schemes[name] = scheme
    replace_linears(network, schemes)


def quantize_linears(
    network: nn.Module,
    config: Mapping[str, Any],
    text: MllamaTextConfig,
    reader: CheckpointReader,
    wanted: str,
) -> dict[str, Scheme]:
    """Replace the layers to quantize while loading, rounded to nearest; return their schemes.

    Raises UsageError for an unknown name and for a checkpoint that is quantized already.
    """
    options = QuantizeOptions(scheme_named(wanted), "rtn")
    refuse_quantized(config, reader.folder.name)
    linears = {name: inputs for name, inputs in linear_layers(network).items() if f"{name}.weight" in reader.tensors}
    with SliceReader() as slices:
        schemes = dict(
            choose_schemes(linears, text, options, ErrorProbe(slices, reader.tensors, options.scheme)).schemes
        )
    replace_linears(network, schemes)
    return schemes


def quantize_into(module: nn.Module, name: str, weight: Tensor, file: str) -> None:
    """Quantize one loaded matrix into its replaced layer. Raises CheckpointError for NaN or infinity."""
    assert isinstance(module, QuantizedLinear)
    try:
        module.fill(quantize_matrix(weight, module.scheme, "rtn").weight)
    except NotFiniteError:
        raise not_finite(name, file) from None


def repack_linears(network: nn.Module, adapters: Adapters) -> dict[str, QuantizedLinear]:
    """Replace the packed layers that adapters change by ones of MERGED_SCHEME; return the old ones, to read into."""
    stored = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLinear) and f"{name}.weight" in adapters
    }
    replace_linears(network, {name: MERGED_SCHEME.fitted(module.in_features) for name, module in stored.items()})
    return stored


def merge_into(module: nn.Module, name: str, stored: PackedWeight, adapters: Adapters) -> None:
    """Fill a layer with the ``stored`` matrix of another scheme and the adapters' changes of the weight ``name``."""
    assert isinstance(module, QuantizedLinear)
    rows, inputs = stored.shape
    step = max(1, _MERGED_BLOCK // inputs)
    parts = []
    for start in range(0, rows, step):
        packed, scale = stored.packed[start : start + step], stored.scale[start : start + step]
        dense = dequantize(PackedWeight(packed, scale, (len(packed), inputs), stored.bits))
        merged = adapters.merged(name, dense, scale.dtype, start)
        parts.append(quantize_matrix(merged, module.scheme, "rtn").weight)
    packed, scale = torch.cat([part.packed for part in parts]), torch.cat([part.scale for part in parts])
    module.fill(PackedWeight(packed, scale, stored.shape, module.scheme.bits))
