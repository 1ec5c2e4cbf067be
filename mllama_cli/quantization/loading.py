"""Quantized layers of a network that is being loaded: stored in the checkpoint, or quantized while loading."""

from torch import Tensor, nn

from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.quantization.linear import QuantizedLinear, linear_layers, replace_linears
from mllama_cli.quantization.opening import scheme_of
from mllama_cli.quantization.plan import refuse_quantized
from mllama_cli.quantization.policy import QuantizeOptions, choose_schemes
from mllama_cli.quantization.rounding import NotFiniteError, quantize_matrix
from mllama_cli.quantization.schemes import GROUP_SIZES, Scheme, scheme_named
from mllama_cli.quantization.sensitivity import ErrorProbe, not_finite


def repack_linears(network: nn.Module, reader: CheckpointReader, wanted: str | None) -> dict[str, Scheme]:
    """Replace the layers in a form whose integers and scales our packed layout holds exactly; return their schemes.

    Those of more bits than ``wanted`` (int4, int8) are left to be quantized.
    """
    most = scheme_named(wanted).bits if wanted is not None else 8
    linears = linear_layers(network)
    schemes = {
        name: scheme_of(matrix.form)
        for name, matrix in reader.contents.matrices()
        if name in linears and matrix.form.packing is not None and matrix.form.packing.bits <= most
    }
    replace_linears(network, schemes)
    return schemes


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


def quantize_into(module: nn.Module, name: str, weight: Tensor, file: str) -> None:
    """Quantize one loaded matrix into its replaced layer. Raises CheckpointError for NaN or infinity."""
    assert isinstance(module, QuantizedLinear)
    try:
        module.fill(quantize_matrix(weight, module.scheme, "rtn").weight)
    except NotFiniteError:
        raise not_finite(name, file) from None
