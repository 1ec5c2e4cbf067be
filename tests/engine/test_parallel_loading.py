"""Each rank's weights are its part of the checkpoint's, however they are stored, quantized or changed by adapters."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.core.errors import UsageError
from mllama_cli.engine.parallel.plan import Share, require_divisible
from mllama_cli.engine.weights.loader import StoredWeights
from mllama_cli.kernels.packed import PackedWeight, dequantize, pack
from mllama_cli.quantization.linear import QuantizedLinear
from mllama_cli.quantization.opening import open_network
from tests.checkpoints import config_dict, make_checkpoint
from tests.quantization.running import quantize_four

WIDE = config_dict({"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4})


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "wide", WIDE, seed=5)


def matrices(folder: Path, quantize: str | None = None, share: Share | None = None) -> dict[str, Tensor]:
    """Return the loaded parameters of a rank; packed matrices dequantized."""
    opened = open_network(folder)
    weights = StoredWeights(opened, torch.device("cpu"), "float32", quantize, share=share or Share())
    for _ in weights.load({"text", "vision"}):
        pass
    found = {}
    for name, module in opened.network.named_modules():
        if isinstance(module, QuantizedLinear):
            found[f"{name}.weight"] = dequantize(module.packed)
        else:
            found |= {f"{name}.{key}": p for key, p in module.named_parameters(recurse=False) if not p.is_meta}
    return found


def joined(parts: list[Tensor], whole: Tensor) -> Tensor:
    """Put the parts of one matrix together."""
    if parts[0].shape == whole.shape:
        return parts[0]
    return torch.cat(parts, dim=0 if parts[0].shape[1] == whole.shape[1] else 1)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_parts_are_those_of_the_whole(wide: Path, quantize: str | None, count: int) -> None:
    whole = matrices(wide, quantize)
    ranks = [matrices(wide, quantize, Share(rank, count)) for rank in range(count)]
    assert whole.keys() == ranks[0].keys()
    for name, tensor in whole.items():
        parts = [rank[name] for rank in ranks if name in rank]
        assert torch.equal(joined(parts, tensor), tensor), name
        if "language_model" in name and "_proj" in name:
            assert all(part.numel() * count == tensor.numel() for part in parts), name
    assert not [name for name in ranks[1] if "vision" in name]
    assert "lm_head.weight" in ranks[-1]


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_packed_files(wide: Path, tmp_path: Path, count: int) -> None:
    quantize_four(str(wide), str(tmp_path / "packed"))
    whole = matrices(tmp_path / "packed")
    ranks = [matrices(tmp_path / "packed", share=Share(rank, count)) for rank in range(count)]
    for name, tensor in whole.items():
        assert torch.equal(joined([rank[name] for rank in ranks if name in rank], tensor), tensor), name


def test_part_of_a_packed_matrix_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    for bits, groups in ((4, 1), (4, 2), (8, 4)):
        q = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, 64), generator=generator)
        weight = PackedWeight(pack(q, bits), torch.rand(6, groups, generator=generator) + 0.1, (6, 64), bits)
        for rows, columns in ((slice(0, 6), slice(16, 32)), (slice(2, 5), slice(0, 64)), (slice(1, 6), slice(40, 64))):
            part = weight.part(rows, columns)
            assert part.problem == ""
            assert torch.equal(dequantize(part), dequantize(weight)[rows, columns])


def test_sizes_that_do_not_divide_the_heads() -> None:
    text = MllamaTextConfig()
    require_divisible(text, 8)
    with pytest.raises(UsageError, match="over 3 devices: they do not divide its 8 key/value heads") as error:
        require_divisible(text, 3)
    assert error.value.hint == "Use 2 devices, or one."
