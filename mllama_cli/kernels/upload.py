"""Small tensors from the host onto a device without waiting for what the device is doing."""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on the device; from pinned memory, as a copy from elsewhere makes the host wait for a GPU's stream."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
