"""Quantized layers of a network that is being loaded: stored in the checkpoint, or quantized while loading."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.config import MllamaTextConfig, section
from mllama_cli.core.errors import CheckpointError
from mllama_cli.quantization.config_groups import ConfigGroups
from mllama_cli.quantization.linear import QuantizedLinear, replace_linears
from mllama_cli.quantization.plan import linear_layers, refuse_quantized
from mllama_cli.quantization.policy import QuantizeOptions, choose_schemes
from mllama_cli.quantization.rounding import NotFiniteError, quantize_matrix
from mllama_cli.quantization.schemes import Scheme, scheme_named
from mllama_cli.quantization.sensitivity import ErrorProbe, not_finite


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
