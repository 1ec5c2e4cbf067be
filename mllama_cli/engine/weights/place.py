"""Stored tensors on their way into the network: where each goes, and in which format."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.engine.forward import Network
from mllama_cli.engine.weights.offload import OffloadPlan, is_vision_layer
from mllama_cli.engine.weights.offloaded_vision import OffloadedVision, to_host
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.loading import quantize_into
from mllama_cli.quantization.schemes import Scheme


class Placement:
    """Fill a network on the meta device, tensor by tensor.

    ``dtype`` is the format of activations and caches, ``weights_dtype`` the one in which matrices are kept.
    ``schemes`` names the layers that are quantized on the way.
    """

    def __init__(
        self,
        network: Network,
        plan: OffloadPlan,
        device: torch.device,
        dtype: torch.dtype,
        weights_dtype: torch.dtype,
        schemes: Mapping[str, Scheme],
    ) -> None:
        self._network, self._plan, self._device = network, plan, device
        self._dtype, self._weights_dtype, self._schemes = dtype, weights_dtype, schemes
        self._modules = dict(network.named_modules())

    def put(self, name: str, tensor: Tensor, file: str) -> None:
        """Make a stored tensor the network's parameter of that name. ``file`` is where it came from, for errors."""
        if name == "lm_head.weight":
            # Rows that people add for fine-tuning are never sampled.
            tensor = tensor[: self._text_config.vocab_size]
        owner, _, attribute = name.rpartition(".")
        module = self._modules[owner]
        if attribute == "weight" and owner in self._schemes:
            quantize_into(module, name, tensor.to(self._device), file)
        else:
            value = nn.Parameter(self._placed(module, name, tensor), requires_grad=False)
            module.register_parameter(attribute, value)

    def tie_output_layer(self) -> None:
        """Let the output layer be the embeddings."""
        table = self._network.language_model.embed_tokens.weight
        tied = nn.Parameter(table[: self._text_config.vocab_size], requires_grad=False)
        self._network.lm_head.weight = tied

    def finish_vision(self) -> Iterator[int]:
        """Prepare the loaded vision tower to run; yields the bytes of each layer that moved to host memory."""
        if not isinstance(self._network, MllamaForConditionalGeneration):
            return
        tower = self._network.model.vision_model
        if self._plan.vision:
            yield from OffloadedVision(tower, self._device).pack()
        elif self._device.type == "cuda":
            tower.fuse_projections()

    @property
    def _text_config(self) -> MllamaTextConfig:
        return self._network.language_model.config

    def _placed(self, owner: nn.Module, name: str, tensor: Tensor) -> Tensor:
        # An offloaded tower's layers stay in the mapped file until all of them are there (finish_vision).
        device = torch.device("cpu") if self._plan.vision and is_vision_layer(name) else self._device
        if isinstance(owner, QuantizedLinear) and not name.endswith(".bias"):
            return owner.checked(name, tensor).to(device)
        # Norms, gates and the like are small and get the format of the computation.
        dtype = self._weights_dtype if isinstance(owner, nn.Linear | nn.Embedding) else self._dtype
        if self._plan.covers(name) and device == self._device:
            return to_host(tensor, dtype, self._device)
        return tensor.to(device, dtype)
