"""Rotary position embedding with the llama3 frequency scaling."""

import math

import torch
from torch import Tensor

from mllama_cli.core.config import RopeScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """Return the rotation per position of each pair of dimensions, in radians: float32 [head_dim / 2].

    llama3 scaling (Meta's reference, ``apply_scaling``): wavelengths longer than original / low_freq_factor turn
    ``factor`` times slower, those shorter than original / high_freq_factor stay, those in between are blended.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling.rope_type == "default":
        return frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angles at positions [B, L]: two float32 [B, 1, L, head_dim]."""
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()
