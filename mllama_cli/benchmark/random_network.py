"""Models with random weights, made on their device, so that measuring speed needs no checkpoint."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import nn

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.device import compute_dtype, free_bytes
from mllama_cli.engine.forward import PREFILL_CHUNK, Network
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.weights.memory import choose_prefill_chunk, min_working_bytes
from mllama_cli.engine.weights.offload import OffloadPlan, choose_plan, is_embedding, refusal, sizes_of_shape
from mllama_cli.engine.weights.offloaded_vision import OffloadedVision, to_host
from mllama_cli.engine.weights.shapes import network_of_shape
from mllama_cli.kernels.ops import reads_host_memory
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.quantization.linear import QuantizedLinear


def random_model(
    config: MllamaConfig, *, dtype: torch.dtype, device: torch.device, quantize: str | None = None
) -> tuple[LoadedModel, OffloadPlan]:
    """Return a model of this shape and its offload plan. Raise MemoryShortageError if it does not fit."""
    plan, chunk = OffloadPlan(), PREFILL_CHUNK
    if device.type == "cuda":
        sizes, free = sizes_of_shape(config, quantize, dtype.itemsize), free_bytes(device)
        work = min_working_bytes(config, dtype.itemsize)
        chosen = choose_plan(sizes, work, free, can_offload_embeddings=lambda: reads_host_memory(device))
        if chosen is None:
            raise refusal(config, sizes, free, device, dtype, quantize or "")
        plan = chosen
        chunk = choose_prefill_chunk(config, dtype.itemsize, "cuda", free - sizes.on_gpu(plan))
    network = random_network(config, dtype=dtype, device=device, quantize=quantize, plan=plan)
    if device.type == "cuda" and not plan.vision:
        network.model.vision_model.fuse_projections()
    compute = compute_dtype(dtype, device)
    return model_without_tokenizer(network, config, dtype=compute, device=device, prefill_chunk=chunk), plan


def model_without_tokenizer(
    network: Network,
    config: MllamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    prefill_chunk: int = PREFILL_CHUNK,
) -> LoadedModel:
    """Return a model of this network with an empty vocabulary, for answers that are only counted."""
    processor = MllamaProcessor(MllamaTokenizer(Tokenizer(BPE())), None, None, config.image_token_index)
    return LoadedModel(network, config, processor, device=device, dtype=dtype, prefill_chunk=prefill_chunk)


def random_network(
    config: MllamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str | None = None,
    plan: OffloadPlan | None = None,
) -> MllamaForConditionalGeneration:
    """Return a network of this shape whose activations neither vanish nor explode.

    ``quantize`` is as in ``network_of_shape``; the ``plan``'s parts are in host memory.
    """
    plan = plan or OffloadPlan()
    network = network_of_shape(config, quantize)
    assert isinstance(network, MllamaForConditionalGeneration)
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            module.fill(random_matrix(module, dtype, device))
    for name, parameter in list(network.named_parameters()):
        if not parameter.is_meta:
            continue
        owner, _, attribute = name.rpartition(".")
        is_matrix = isinstance(network.get_submodule(owner), nn.Linear | nn.Embedding)
        kept = dtype if is_matrix else compute_dtype(dtype, device)  # as engine/weights/place.py places them
        values = torch.empty(parameter.shape, dtype=kept, device=device)
        if parameter.dim() == 1:
            values.fill_(1.0 if "norm" in name and attribute == "weight" else 0.5 if "gate" in name else 0.0)
        elif "tile" in name:
            values.zero_()  # unused tiles are uniform, as in every released checkpoint
        else:
            values.normal_(0, 1 if "embed_tokens" in name else parameter[0].numel() ** -0.5)
        if plan.embeddings and is_embedding(name):
            values = to_host(values, dtype, device)
        elif plan.covers(name):
            values = values.cpu()
        network.get_submodule(owner).register_parameter(attribute, nn.Parameter(values, requires_grad=False))
    if plan.vision:
        for _ in OffloadedVision(network.model.vision_model, device).pack():
            pass
    return network.eval()


def random_matrix(module: QuantizedLinear, dtype: torch.dtype, device: torch.device) -> PackedWeight:
    """Return a packed matrix of random numbers for a layer, scaled to keep the size of activations."""
    scheme, inputs, outputs = module.scheme, module.in_features, module.out_features
    words = torch.randint(-(2**31), 2**31 - 1, (outputs, scheme.words(inputs)), dtype=torch.int32, device=device)
    size = 2.0 ** (2 - scheme.bits) * inputs**-0.5
    scale = torch.full((outputs, scheme.groups(inputs)), size, dtype=dtype, device=device)
    return PackedWeight(words, scale, (outputs, inputs), scheme.bits)
