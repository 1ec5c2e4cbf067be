"""The shapes of the released models, and empty networks of any shape."""

from mllama_cli.core.config import MllamaConfig, MllamaTextConfig
from mllama_cli.engine.forward import Network
from mllama_cli.model.mllama import empty_network
from mllama_cli.quantization.linear import linear_layers, replace_linears
from mllama_cli.quantization.policy import QuantizeOptions, choose_schemes
from mllama_cli.quantization.schemes import scheme_named

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


def network_of_shape(config: MllamaConfig, quantize: str | None = None) -> Network:
    """Return the empty network of a config on the meta device.

    ``quantize``, int8 or int4, packs the language model as while loading. Raise UsageError for anything else.
    """
    network = empty_network(config)
    if quantize is not None:
        # Which layers keep more bits depends on their weights, but their number does not.
        options = QuantizeOptions(scheme_named(quantize), "rtn")
        chosen = choose_schemes(linear_layers(network), config.text_config, options, lambda name: 0.0)
        replace_linears(network, chosen.schemes)
    return network
