"""The shapes of the released models, and empty networks of any shape."""

from mllama_cli.core.config import MllamaConfig, MllamaTextConfig
from mllama_cli.engine.forward import Network
from mllama_cli.model.mllama import empty_network
from mllama_cli.quantization.linear import linear_layers, replace_linears
from mllama_cli.quantization.policy import QuantizeOptions, choose_schemes
from mllama_cli.quantization.schemes import Scheme, scheme_named

SHAPES = {
    "11b": MllamaConfig(),
    "90b": MllamaConfig(
        text_config=MllamaTextConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=100,
            num_attention_heads=64,
            cross_attention_layers=tuple(range(3, 100, 5)),
        )
    ),
}

FILE_SCHEMES = {"nf4": Scheme(4, 64, "nf4"), "fp8": Scheme(8, 0, "fp8")}
"""What most quantized files of others have: nf4 of bitsandbytes, and FP8 with a scale for each row."""


def network_of_shape(config: MllamaConfig, quantize: str | None = None) -> Network:
    """Return the empty network of a config on the meta device.

    ``quantize``, int8 or int4, packs the language model as while loading; nf4 and fp8 pack what such files do: all
    layers but the output layer, fp8 those of the language model alone. Raise UsageError for anything else.
    """
    network = empty_network(config)
    if quantize in FILE_SCHEMES:
        scheme = FILE_SCHEMES[quantize]
        names = [
            name
            for name in linear_layers(network)
            if name != "lm_head" and (quantize == "nf4" or ".language_model." in name)
        ]
        replace_linears(network, dict.fromkeys(names, scheme))
    elif quantize is not None:
        # Which layers keep more bits depends on their weights, but their number does not.
        options = QuantizeOptions(scheme_named(quantize), "rtn")
        chosen = choose_schemes(linear_layers(network), config.text_config, options, lambda name: 0.0)
        replace_linears(network, chosen.schemes)
    return network
