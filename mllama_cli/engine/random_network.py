"""A released model's shape with random weights, made where they will be used: speed needs no checkpoint."""

import math

import torch
from torch import Tensor, nn

from mllama_cli.core.config import MllamaConfig, MllamaTextConfig
from mllama_cli.core.errors import UsageError
from mllama_cli.kernels.reference import PackedWeight
from mllama_cli.kernels.reference import quantized_linear as reference_linear
from mllama_cli.model.mllama import MllamaForConditionalGeneration

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
QUANTIZED = {"int8": 8, "int4": 4}


class RandomPackedLinear(nn.Module):
    """A linear layer over a packed matrix of random numbers."""

    def __init__(self, inputs: int, outputs: int, bits: int, group: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        words = torch.randint(-(2**31), 2**31 - 1, (outputs, inputs * bits // 32), dtype=torch.int32, device=device)
        scale = torch.full((outputs, inputs // group), 2.0 ** (2 - bits) * inputs**-0.5, dtype=dtype, device=device)
        self.packed = PackedWeight(words, scale, (outputs, inputs), bits)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            from mllama_cli.kernels.cuda.packed import quantized_linear

            return quantized_linear(x, self.packed)
        return reference_linear(x, self.packed)


def random_network(
    config: MllamaConfig, *, dtype: torch.dtype, device: torch.device, quantize: str | None = None
) -> MllamaForConditionalGeneration:
    """A network of this shape whose activations neither vanish nor explode.

    ``quantize`` packs the language model as `mllama quantize` does: int8 per channel, or int4 in groups of 128 with the
    layers that suffer most from it in 8 bits. Raises UsageError for another word.
    """
    if quantize is not None and quantize not in QUANTIZED:
        raise UsageError(f"{quantize!r} is no way to quantize", f"Use {' or '.join(QUANTIZED)}.")
    with torch.device("meta"):
        network = MllamaForConditionalGeneration(config)
    if quantize is not None:
        for name, module in list(network.named_modules()):
            if type(module) is nn.Linear and not name.startswith(("model.vision_model", "model.multi_modal")):
                bits = 8 if quantize == "int8" or _sensitive(name) else 4
                group = module.in_features if bits == 8 else math.gcd(module.in_features, 128)
                owner, _, attribute = name.rpartition(".")
                packed = RandomPackedLinear(module.in_features, module.out_features, bits, group, dtype, device)
                setattr(network.get_submodule(owner), attribute, packed)
    for name, parameter in list(network.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.dim() == 1:
            values.fill_(1.0 if "norm" in name and attribute == "weight" else 0.5 if "gate" in name else 0.0)
        elif "tile" in name:
            values.zero_()  # unused tiles alike, as in every released checkpoint
        else:
            values.normal_(0, 1 if "embed_tokens" in name else parameter[0].numel() ** -0.5)
        network.get_submodule(owner).register_parameter(attribute, nn.Parameter(values, requires_grad=False))
    return network.eval()


def _sensitive(name: str) -> bool:
    """Layers that keep 8 bits beside 4 (as for the released 11B models): about a thirtieth of a token's bytes."""
    downs = ("layers.13.mlp.down_proj", "layers.18.mlp.down_proj")
    return name == "lm_head" or ".layers.1." in name or name.endswith(("cross_attn.o_proj", *downs))
