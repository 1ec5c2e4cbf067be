"""A released model's shape with random weights, made where they will be used: speed needs no checkpoint."""

import torch
from torch import nn

from mllama_cli.core.config import MllamaConfig, MllamaTextConfig
from mllama_cli.core.errors import UsageError
from mllama_cli.engine.decoder import Network
from mllama_cli.engine.host_memory import to_host
from mllama_cli.engine.memory_plan import MemoryPlan, is_embedding
from mllama_cli.engine.streamed_tower import StreamedTower
from mllama_cli.kernels.reference import PackedWeight
from mllama_cli.model.mllama import MllamaForConditionalGeneration, empty_network
from mllama_cli.quantization.choose import Wish, choose
from mllama_cli.quantization.linear import QuantizedLinear, replace_linears
from mllama_cli.quantization.loading import NAMES
from mllama_cli.quantization.plan import linear_layers
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


def shaped(config: MllamaConfig, quantize: str | None = None) -> Network:
    """The empty network of a config on the meta device.

    ``quantize``, int8 or int4, packs the language model as quantizing while loading does. UsageError for another word.
    """
    if quantize is not None and quantize not in NAMES:
        raise UsageError(f"{quantize!r} is no way to quantize", f"Use {' or '.join(NAMES)}.")
    network = empty_network(config)
    if quantize is not None:
        # Which layers are kept higher in a shape of unknown depth depends on weights: how many does not.
        wish = Wish(scheme_named(quantize), "rtn")
        replace_linears(network, choose(linear_layers(network), config.text_config, wish, lambda name: 0.0).schemes)
    return network


def random_network(
    config: MllamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str | None = None,
    plan: MemoryPlan | None = None,
) -> MllamaForConditionalGeneration:
    """A network of this shape whose activations neither vanish nor explode.

    ``quantize`` as in ``shaped``. What the ``plan`` names is in host memory.
    """
    plan = plan or MemoryPlan()
    network = shaped(config, quantize)
    assert isinstance(network, MllamaForConditionalGeneration)
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            module.fill(random_matrix(module, dtype, device))
    for name, parameter in list(network.named_parameters()):
        if not parameter.is_meta:
            continue
        owner, _, attribute = name.rpartition(".")
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.dim() == 1:
            values.fill_(1.0 if "norm" in name and attribute == "weight" else 0.5 if "gate" in name else 0.0)
        elif "tile" in name:
            values.zero_()  # unused tiles alike, as in every released checkpoint
        else:
            values.normal_(0, 1 if "embed_tokens" in name else parameter[0].numel() ** -0.5)
        if plan.embeddings_on_host and is_embedding(name):
            values = to_host(values, dtype, device)
        elif plan.on_host(name):
            values = values.cpu()
        network.get_submodule(owner).register_parameter(attribute, nn.Parameter(values, requires_grad=False))
    if plan.tower_streamed:
        for _ in StreamedTower(network.model.vision_model, device).pack():
            pass
    return network.eval()


def random_matrix(module: QuantizedLinear, dtype: torch.dtype, device: torch.device) -> PackedWeight:
    """A packed matrix of random numbers for a layer, with products of the size of its inputs."""
    scheme, inputs, outputs = module.scheme, module.in_features, module.out_features
    words = torch.randint(-(2**31), 2**31 - 1, (outputs, scheme.words(inputs)), dtype=torch.int32, device=device)
    size = 2.0 ** (2 - scheme.bits) * inputs**-0.5
    scale = torch.full((outputs, scheme.groups(inputs)), size, dtype=dtype, device=device)
    return PackedWeight(words, scale, (outputs, inputs), scheme.bits)
