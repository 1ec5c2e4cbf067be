"""Muon: momentum whose updates are made orthogonal, for the matrices of a network.

After Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024), with the scale of Liu et al.,
"Muon is scalable for LLM training" (2025), so that one learning rate serves it and AdamW. torch.optim.Muon takes one
matrix at a time and its learning rate from the host; here matrices of one shape are batched, all on the device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix of [N, rows, columns] near 1 (0.7 to 1.2) by quintic Newton-Schulz."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result


class Muon:
    """Update ``matrices`` in place from their ``grad``; ``rate`` is a tensor on their device."""

    def __init__(self, matrices: Sequence[Tensor], rate: Tensor, *, momentum: float = 0.95, decay: float = 0.0) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        self._groups = list(by_shape.values())
        self._momenta = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self._groups]
        self._rate, self._momentum, self._decay = rate, momentum, decay

    @torch.no_grad()
    def step(self) -> None:
        keep = 1 - self._rate * self._decay
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradients = torch.stack([m.grad for m in group if m.grad is not None])
            momentum.lerp_(gradients, 1 - self._momentum)
            update = orthogonalized(gradients.lerp(momentum, self._momentum))  # Nesterov momentum
            update *= self._rate * (0.2 * math.sqrt(max(update.shape[-2:])))
            torch._foreach_mul_(group, keep)
            torch._foreach_sub_(group, list(update.unbind()))

    def momentum_of(self, matrix: Tensor) -> Tensor:
        """Return the momentum of one of the matrices, a writable view."""
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            for index, member in enumerate(group):
                if member is matrix:
                    return momentum[index]
        raise KeyError("not one of these matrices")
