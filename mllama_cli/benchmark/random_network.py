"""Models with random weights, made on their device, so that measuring speed needs no checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import nn

from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.device import compute_dtype, free_bytes
from mllama_cli.engine.forward import PREFILL_CHUNK, Network
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.parallel.cut import cut_network
from mllama_cli.engine.parallel.leading import share_out
from mllama_cli.engine.parallel.plan import WHOLE, Share, require_divisible
from mllama_cli.engine.parallel.team import Team
from mllama_cli.engine.weights.memory import choose_prefill_chunk, min_working_bytes
from mllama_cli.engine.weights.offload import OffloadPlan, choose_plan, is_embedding, refusal, sizes_of_shape
from mllama_cli.engine.weights.offloaded_vision import OffloadedVision, to_host
from mllama_cli.engine.weights.opening import OpenedShare
from mllama_cli.engine.weights.shapes import network_of_shape
from mllama_cli.kernels.codes import TABLES
from mllama_cli.kernels.ops import reads_host_memory
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.quantization.linear import QuantizedLinear


@dataclass(frozen=True)
class RandomOpening:
    """Makes a rank's share of a random network."""

    config: MllamaConfig
    dtype: torch.dtype
    quantize: str | None
    plan: OffloadPlan

    def __call__(self, share: Share, device: torch.device) -> OpenedShare:
        network = random_network(
            self.config, dtype=self.dtype, device=device, quantize=self.quantize, plan=self.plan, share=share
        )
        return OpenedShare(network, compute_dtype(self.dtype, device))


def random_model(
    config: MllamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    others: Sequence[torch.device] = (),
    quantize: str | None = None,
    image_kv: str | None = None,
) -> tuple[LoadedModel, OffloadPlan]:
    """Return a model of this shape and its offload plan; ``others`` are devices that share it.

    Raise MemoryShortageError if it does not fit, or UsageError if it cannot be cut.
    """
    ranks = 1 + len(others)
    plan, chunk = OffloadPlan(), PREFILL_CHUNK
    if others:
        require_divisible(config.text_config, ranks)
    local = config.shared_by(ranks)
    if device.type == "cuda":
        sizes, free = sizes_of_shape(config, quantize, dtype.itemsize, ranks), free_bytes(device)
        work = min_working_bytes(local, dtype.itemsize)
        chosen = choose_plan(sizes, work, free, can_offload_embeddings=lambda: reads_host_memory(device))
        if chosen is None:
            raise refusal(local, sizes, free, device, dtype, quantize or "")
        plan = chosen
        chunk = choose_prefill_chunk(local, dtype.itemsize, "cuda", free - sizes.on_gpu(plan))
    opening = RandomOpening(config, dtype, quantize, plan)
    team = Team([device, *others], opening, config.text_config) if others else None
    network = opening(Share(0, ranks), device).network
    if team is not None:
        team.start()
        team.meet()
        share_out(network, team)
    if device.type == "cuda" and not plan.vision and isinstance(network, MllamaForConditionalGeneration):
        network.model.vision_model.fuse_projections()
    compute = compute_dtype(dtype, device)
    made = model_without_tokenizer(
        network, local, dtype=compute, device=device, prefill_chunk=chunk, team=team, image_kv=image_kv
    )
    return made, plan


def model_without_tokenizer(
    network: Network,
    config: MllamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    prefill_chunk: int = PREFILL_CHUNK,
    team: Team | None = None,
    image_kv: str | None = None,
) -> LoadedModel:
    """Return a model of this network with an empty vocabulary, for answers that are only counted."""
    processor = MllamaProcessor(MllamaTokenizer(Tokenizer(BPE())), None, None, config.image_token_index)
    return LoadedModel(
        network,
        config,
        processor,
        device=device,
        dtype=dtype,
        prefill_chunk=prefill_chunk,
        team=team,
        image_kv=image_kv,
    )


def random_network(
    config: MllamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str | None = None,
    plan: OffloadPlan | None = None,
    share: Share = WHOLE,
) -> MllamaForConditionalGeneration:
    """Return a network of this shape, or a rank's share of it, whose activations neither vanish nor explode.

    ``quantize`` is as in ``network_of_shape``; the ``plan``'s parts are in host memory.
    """
    plan = plan or OffloadPlan()
    network = network_of_shape(config, quantize)
    if share.count > 1:
        cut_network(network, share)
    assert isinstance(network, MllamaForConditionalGeneration)
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            module.fill(random_matrix(module, dtype, device))
    for name, parameter in list(network.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        if not parameter.is_meta or not share.has(owner):
            continue
        is_matrix = isinstance(network.get_submodule(owner), nn.Linear | nn.Embedding)
        kept = dtype if is_matrix else compute_dtype(dtype, device)  # as engine/weights/place.py places them
        values = torch.empty(parameter.shape, dtype=kept, device=device)
        if parameter.dim() == 1:
            values.fill_(1.0 if "norm" in name and attribute == "weight" else 0.5 if "gate" in name else 0.0)
        elif "tile" in name:
            values.zero_()  # unused tiles are uniform, as in every released checkpoint
        else:
            if "embed_tokens" in name:  # the same on all ranks
                values.normal_(generator=torch.Generator(device).manual_seed(0))
            else:
                values.normal_(0, parameter[0].numel() ** -0.5)
        if plan.embeddings and is_embedding(name):
            values = to_host(values, dtype, device)
        elif plan.covers(name):
            values = values.cpu()
        network.get_submodule(owner).register_parameter(attribute, nn.Parameter(values, requires_grad=False))
    if plan.vision and share.rank == 0:
        for _ in OffloadedVision(network.model.vision_model, device).pack():
            pass
    return network.eval()


def random_matrix(module: QuantizedLinear, dtype: torch.dtype, device: torch.device) -> PackedWeight:
    """Return a packed matrix of random numbers for a layer, scaled to keep the size of activations."""
    scheme, inputs, outputs = module.scheme, module.in_features, module.out_features
    shape = outputs, scheme.words(inputs)
    if scheme.code == "fp8":  # random bits would often be huge, or no number
        words = torch.randn(outputs, inputs, dtype=dtype, device=device).to(torch.float8_e4m3fn).view(torch.int32)
    else:
        words = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device)
    size = {"int": 2.0 ** (2 - scheme.bits), "fp8": 1.0}.get(scheme.code, 1.7) * inputs**-0.5
    kept = torch.float32 if scheme.code in TABLES else dtype
    scale = torch.full((outputs, scheme.groups(inputs)), size, dtype=kept, device=device)
    return PackedWeight(words, scale, (outputs, inputs), scheme.bits, scheme.code)
