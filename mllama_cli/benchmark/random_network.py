"""A released model's shape with random weights, made where they will be used: speed needs no checkpoint."""

import torch
from torch import nn

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.weights.host_memory import to_host
from mllama_cli.engine.weights.offload import MemoryPlan, is_embedding
from mllama_cli.engine.weights.offloaded_vision import StreamedTower
from mllama_cli.engine.weights.shapes import shaped
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.quantization.linear import QuantizedLinear


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
