"""Put stored tensors into the network, each on its device and in its format."""

from collections.abc import Container, Iterator, Mapping

import torch
from torch import Tensor, nn

from mllama_cli.checkpoint.adapters.merge import Adapters
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.cut import Kept
from mllama_cli.engine.weights.offload import OffloadPlan, is_vision_layer
from mllama_cli.engine.weights.offloaded_vision import OffloadedVision, to_host
from mllama_cli.kernels.packed import PackedWeight
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.quantization.linear import AdaptedLinear, QuantizedLinear
from mllama_cli.quantization.loading import merge_into, quantize_into
from mllama_cli.quantization.schemes import Scheme


class Placement:
    """Fill a network on the meta device, tensor by tensor.

    ``dtype`` is the dtype of activations and caches, ``weights_dtype`` that of matrices. ``schemes`` has the layers to
    quantize while loading; ``widened`` those that are read packed into other layers, to merge ``adapters`` into them.
    ``kept`` has the rows and columns that are here of layers that are cut; ``pieces`` names the tensors of which no
    others are read.
    """

    def __init__(
        self,
        network: Network,
        plan: OffloadPlan,
        device: torch.device,
        dtype: torch.dtype,
        weights_dtype: torch.dtype,
        schemes: Mapping[str, Scheme],
        adapters: Adapters,
        widened: Mapping[str, QuantizedLinear],
        kept: Mapping[str, Kept],
        pieces: Container[str],
    ) -> None:
        self._network, self._plan, self._device = network, plan, device
        self._dtype, self._weights_dtype, self._schemes = dtype, weights_dtype, schemes
        self._adapters, self._widened = adapters, widened
        self._kept, self._pieces = kept, pieces
        self._vocab_size = network.language_model.config.vocab_size
        self._modules = dict(network.named_modules())

    def put(self, name: str, tensor: Tensor | PackedWeight, file: str) -> None:
        """Make a stored tensor the network's parameter of that name. ``file`` is for error messages."""
        owner, _, attribute = name.rpartition(".")
        module = self._modules[owner]
        if isinstance(module, AdaptedLinear) and module.lora_a.is_meta:
            change = self._adapters.factors(f"{owner}.weight", module.whole[0])
            module.fill_change(*(each.to(self._device_of(name), self._weights_dtype) for each in change))
        if isinstance(tensor, PackedWeight):
            assert isinstance(module, QuantizedLinear)
            module.fill_checked(name, tensor, self._device_of(name))
            return
        if name == "lm_head.weight" and name not in self._pieces:
            # Rows added for fine-tuning are never sampled.
            tensor = tensor[: self._vocab_size]
        if owner in self._widened and attribute != "bias":
            self._widen(owner, name, tensor)
            return
        if name in self._adapters:
            # Norms and biases keep float32; a matrix is rounded once, to the dtype in which it is placed or quantized.
            dtype = tensor.dtype if owner in self._schemes else self._weights_dtype
            tensor = self._adapters.merged(name, tensor, dtype if tensor.dim() > 1 else torch.float32)
        if attribute == "weight" and owner in self._schemes:
            quantize_into(module, name, tensor.to(self._device_of(name)), self._schemes[owner], file)
        else:
            if owner in self._kept and attribute == "weight" and name not in self._pieces:
                tensor = tensor[self._kept[owner]]
            value = nn.Parameter(self._placed(module, name, tensor), requires_grad=False)
            module.register_parameter(attribute, value)

    def _widen(self, owner: str, name: str, tensor: Tensor) -> None:
        """Take a part of a packed matrix; with the last one, merge the adapters into the matrix."""
        stored = self._widened[owner]
        value = stored.checked(name, tensor).to(self._device)
        stored.register_parameter(name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
        if not any(parameter.is_meta for key, parameter in stored.named_parameters() if key != "bias"):
            merge_into(self._modules[owner], f"{owner}.weight", stored.packed, self._adapters)
            stored.to("meta")

    def tie_output_layer(self) -> None:
        """Share the embeddings with the output layer."""
        table = self._network.language_model.embed_tokens.weight
        rows, _ = self._kept.get("lm_head", (slice(self._vocab_size), None))
        self._network.lm_head.weight = nn.Parameter(table[rows], requires_grad=False)

    def finish_vision(self) -> Iterator[int]:
        """Prepare the loaded vision tower to run; yield the bytes of each layer moved to host memory."""
        if not isinstance(self._network, MllamaForConditionalGeneration):
            return
        tower = self._network.model.vision_model
        if tower.class_embedding.is_meta:  # it is another rank's
            return
        if self._plan.vision:
            yield from OffloadedVision(tower, self._device).pack()
        elif self._device.type == "cuda":
            tower.fuse_projections()

    def _device_of(self, name: str) -> torch.device:
        """Return the device for a parameter: an offloaded tower's layers wait on the host until finish_vision."""
        return torch.device("cpu") if self._plan.vision and is_vision_layer(name) else self._device

    def _placed(self, owner: nn.Module, name: str, tensor: Tensor) -> Tensor:
        device = self._device_of(name)
        if isinstance(owner, QuantizedLinear) and not name.endswith(".bias"):
            return owner.checked(name, tensor).to(device)
        # Norms, gates and other small parameters get the dtype of activations.
        dtype = self._weights_dtype if isinstance(owner, nn.Linear | nn.Embedding) else self._dtype
        if self._plan.covers(name) and device == self._device:
            return to_host(tensor, dtype, self._device)
        return tensor.to(device, dtype).contiguous()  # some columns of a matrix are not
