"""The vision tower with float8 products on a GPU, against torch's operations on a CPU. ``pytest -m gpu tests/gpu``."""

import pytest
import torch

from mllama_cli.core.config import MllamaVisionConfig
from mllama_cli.kernels.float8 import has_float8
from mllama_cli.model.vision import MllamaVisionModel
from mllama_cli.model.vision_float8 import can_round, round_tower

GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@torch.inference_mode()
@pytest.mark.parametrize(("tiles", "ratio"), [(1, 1), (4, 6)])
def test_a_tower_of_released_widths(tiles: int, ratio: int) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("float8 products are for compute capability 9.0")
    assert has_float8(GPU, torch.bfloat16)
    config = MllamaVisionConfig(
        num_hidden_layers=3, num_global_layers=1, image_size=140, intermediate_layers_indices=(1,)
    )
    torch.manual_seed(0)
    tower = MllamaVisionModel(config).eval().requires_grad_(False)
    for parameter in tower.parameters():
        parameter.normal_(0, 0.2) if parameter.dim() == 1 else parameter.normal_(0, parameter[0].numel() ** -0.5)
    pixels, ids = torch.randn(1, tiles, 3, 140, 140), torch.tensor([ratio])
    exact = tower(pixels, ids)
    on_gpu = MllamaVisionModel(config).eval().requires_grad_(False).to(GPU, torch.bfloat16)
    on_gpu.load_state_dict(tower.state_dict())
    assert can_round(on_gpu)
    round_tower(on_gpu)
    round_tower(tower)

    def apart(ours: torch.Tensor, other: torch.Tensor) -> float:
        return float((ours.float().cpu() - other).norm() / other.norm())

    ours, reference = on_gpu(pixels.to(GPU, torch.bfloat16), ids.to(GPU)), tower(pixels, ids)
    loss = apart(reference, exact)
    assert loss > 0.01
    # A number that is nearly halfway between two floats of 8 bits may become either.
    assert apart(ours, reference) < loss
    assert apart(ours, exact) < 1.2 * loss
