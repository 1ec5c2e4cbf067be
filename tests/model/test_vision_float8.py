"""The vision tower with float8 products, which a CPU computes by torch's operations."""

import pytest
import torch

from mllama_cli.kernels.float8 import Rounded
from mllama_cli.model.layers import Linear
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.vision import MllamaVisionModel
from mllama_cli.model.vision_float8 import can_round, round_tower
from mllama_cli.model.vision_layers import MllamaVisionEncoderLayer
from tests.checkpoints import config_dict, random_network


def tower(seed: int = 3) -> MllamaVisionModel:
    network = random_network(
        config_dict(vision={"num_hidden_layers": 4, "intermediate_layers_indices": [0, 3]}), seed=seed
    )
    assert isinstance(network, MllamaForConditionalGeneration)
    return network.model.vision_model


def apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@torch.inference_mode()
@pytest.mark.parametrize(("tiles", "ratio"), [(1, 1), (2, 2), (4, 6)])
@pytest.mark.parametrize("all_tiles", [False, True])
def test_features_differ_by_what_rounding_costs(tiles: int, ratio: int, all_tiles: bool) -> None:
    made = tower()
    pixels = torch.randn(2, tiles, 3, 56, 56, generator=torch.Generator().manual_seed(tiles))
    ids = torch.full((2,), ratio)
    exact = made(pixels, ids, all_tiles=all_tiles)
    round_tower(made)
    ours = made(pixels, ids, all_tiles=all_tiles)
    assert ours.shape == exact.shape
    assert 1e-4 < apart(ours, exact) < 0.05


@torch.inference_mode()
def test_without_its_rounding_a_layer_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(x: torch.Tensor) -> Rounded:
        return Rounded(x.float(), torch.ones(x.shape[:-1]))

    monkeypatch.setattr(Rounded, "rows", whole)
    monkeypatch.setattr(Rounded, "unscaled", lambda x: Rounded(x))
    made = tower()
    pixels, ids = torch.randn(1, 2, 3, 56, 56), torch.tensor([2])
    exact = made(pixels, ids)
    round_tower(made)
    torch.testing.assert_close(made(pixels, ids), exact)


def test_its_large_matrices_take_half_the_memory_of_16_bits() -> None:
    made = tower().to(torch.bfloat16)
    before = sum(parameter.nbytes for parameter in made.transformer.layers.parameters())
    round_tower(made)
    assert sum(parameter.nbytes for parameter in made.transformer.layers.parameters()) < 0.7 * before


def test_rows_of_any_size_keep_their_precision() -> None:
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-6, 6, 2)[:, None]
    rounded = Rounded.rows(x)
    assert rounded.values.dtype == torch.float8_e4m3fn
    errors = (rounded.dequantized() - x).norm(dim=1) / x.norm(dim=1)
    assert errors.max() < 0.04
    assert Rounded.rows(torch.zeros(1, 50)).dequantized().eq(0).all()


def test_numbers_without_scales_are_cut_off_at_the_largest() -> None:
    x = torch.tensor([[1e6, -1e6, 448.0, 1.0, 0.25, 0.0]])
    assert Rounded.unscaled(x).dequantized().tolist() == [[448.0, -448.0, 448.0, 1.0, 0.25, 0.0]]


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(2, 8)
    x[0, 3] = torch.nan
    rounded = Rounded.rows(x).dequantized()
    assert rounded[0].isnan().any()
    assert rounded[1].eq(1).all()


def test_a_tower_of_other_layers_is_left_as_it_is() -> None:
    class Packed(Linear):
        pass

    made = tower()
    assert can_round(made)
    layer = made.global_transformer.layers[1]
    assert isinstance(layer, MllamaVisionEncoderLayer)
    layer.mlp.fc2 = Packed(128, 64)
    assert not can_round(made)
