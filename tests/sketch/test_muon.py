"""Updates are orthogonal: singular values near 1, in the directions of the gradient."""

import pytest
import torch

from mllama_cli.sketch.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(3, 48, 48), (2, 64, 24), (2, 24, 64)])
def test_singular_values_are_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalized(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.4
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ vh
    cosine = (result * exact).sum((1, 2)) / (result.flatten(1).norm(dim=1) * exact.flatten(1).norm(dim=1))
    assert cosine.min() > 0.95


def test_it_solves_a_regression_and_shapes_do_not_mix() -> None:
    torch.manual_seed(0)
    wanted = [torch.randn(8, 8), torch.randn(8, 8), torch.randn(4, 16)]
    found = [torch.zeros_like(w) for w in wanted]
    rate = torch.tensor(0.1)
    optimizer = Muon(found, rate)
    for step in range(200):
        rate.fill_(0.1 * (1 - step / 200))
        for matrix, target in zip(found, wanted, strict=True):
            matrix.grad = matrix - target
        optimizer.step()
    for matrix, target in zip(found, wanted, strict=True):
        assert (matrix - target).norm() < 0.05 * target.norm()


def test_the_momentum_of_a_matrix_can_be_kept_and_put_back() -> None:
    matrices = [torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 3)]
    optimizer = Muon(matrices, torch.tensor(0.01))
    optimizer.momentum_of(matrices[1]).fill_(5.0)
    assert [float(optimizer.momentum_of(m).sum()) for m in matrices] == [0.0, 30.0, 0.0]
    with pytest.raises(KeyError):
        optimizer.momentum_of(torch.ones(2, 3))
