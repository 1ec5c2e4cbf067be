"""Round the loaded vision tower to float8, where that makes images faster."""

import torch

from mllama_cli.engine.forward import Network
from mllama_cli.kernels.float8 import has_float8
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.vision_float8 import can_round, round_tower


def use_float8(network: Network, dtype: torch.dtype, device: torch.device) -> str:
    """Round the network's vision tower, if it has one; return in a line for the user why not, if that is of no use."""
    if not isinstance(network, MllamaForConditionalGeneration):
        return ""
    tower = network.model.vision_model
    if not has_float8(device, dtype):
        return "--fast changes nothing here: it needs 16-bit numbers and a GPU of compute capability 9.0 (H100, H200)"
    if any(parameter.device.type != device.type for parameter in tower.parameters()):
        return "--fast changes nothing here: the vision tower's layers are in host memory"
    if not can_round(tower):
        return "--fast changes nothing here: the vision tower is quantized, or of sizes that the float8 kernels lack"
    round_tower(tower)
    return ""
