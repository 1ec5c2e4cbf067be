"""The quantization_config that we write says of each layer what it is, by compressed-tensors' own matching."""

import pytest

from mllama_cli.checkpoint.names import hub_name
from mllama_cli.quantization.config_groups import quantization_config
from mllama_cli.quantization.schemes import Scheme

SCHEMES = {
    **{f"model.language_model.layers.{n}.self_attn.q_proj": Scheme(4, 128) for n in (0, 1, 10)},
    "model.language_model.layers.1.mlp.down_proj": Scheme(8, 0),
    "model.language_model.layers.11.mlp.down_proj": Scheme(4, 64),
    "lm_head": Scheme(8, 0),
}
KEPT = ("model.language_model.layers.2.self_attn.q_proj", "model.vision_model.transformer.layers.1.mlp.fc1",
        "model.multi_modal_projector", "model.language_model.layers.1.cross_attn.q_proj")  # fmt: skip


@pytest.mark.parametrize("layout", ["ours", "hub"])
def test_each_layer_is_in_its_own_group_alone(layout: str) -> None:
    match_name = pytest.importorskip("compressed_tensors.utils.match").match_name
    declared = quantization_config(SCHEMES, KEPT)
    for name in (*SCHEMES, *KEPT):
        called = name if layout == "ours" else hub_name(f"{name}.weight").removesuffix(".weight")
        found = [
            (group["weights"]["num_bits"], group["weights"]["group_size"] or 0)
            for group in declared["config_groups"].values()
            if any(match_name(called, target) for target in group["targets"])
        ]
        ignored = any(match_name(called, pattern) for pattern in declared["ignore"])
        if name in SCHEMES:
            assert found == [(SCHEMES[name].bits, SCHEMES[name].group_size)], called
            assert not ignored, called
        else:
            assert not found, called
            assert ignored, called
