"""Read config.json's quantization_config as other tools write it, and as we do."""

from typing import Any

import pytest

from mllama_cli.core.errors import CheckpointError
from mllama_cli.quantization.config_groups import ConfigGroups, quantization_config
from mllama_cli.quantization.schemes import Scheme

UP = "model.language_model.layers.3.mlp.up_proj"
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}


def declared(weights: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **(weights or {})}, "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": [], **top,
    }  # fmt: skip


def test_w4a16_with_what_tools_add() -> None:
    extra = {"actorder": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {}, "zp_dtype": None}
    groups = ConfigGroups.from_dict(
        declared(extra, ignore=["lm_head", "re:multi_modal_projector.*", "re:vision_model.*"], sparsity_config={},
                 kv_cache_scheme=None, global_compression_ratio=1.5, version="0.9.0", transform_config={})
    )  # fmt: skip
    assert groups.scheme_of(UP) == Scheme(4, 128)
    for ignored in ("lm_head", "model.multi_modal_projector", "model.vision_model.transformer.layers.0.mlp.fc1"):
        assert groups.scheme_of(ignored) is None


def test_a_preset_by_name() -> None:
    groups = ConfigGroups.from_dict(declared(config_groups={"W8A16": ["Linear"]}))
    assert groups.scheme_of(UP) == Scheme(8, 128)


@pytest.mark.parametrize(
    "strategy", [{"strategy": "channel", "group_size": None}, {"strategy": None, "group_size": -1}]
)
def test_one_scale_per_channel(strategy: dict[str, Any]) -> None:
    assert ConfigGroups.from_dict(declared({"num_bits": 8, **strategy})).scheme_of(UP) == Scheme(8, 0)


@pytest.mark.parametrize("order", ["weight", "static", False])
def test_activation_order_that_leaves_columns_in_place(order: Any) -> None:
    assert ConfigGroups.from_dict(declared({"actorder": order})).scheme_of(UP) == Scheme(4, 128)


def test_names_come_before_expressions_and_these_before_classes() -> None:
    def group(bits: int, *targets: str) -> dict[str, Any]:
        return {"targets": list(targets), "weights": {**WEIGHTS, "num_bits": bits}}

    both = {"a": group(4, "Linear"), "b": group(8, "re:.*layers\\.3\\..*", "lm_head")}
    groups = ConfigGroups.from_dict(declared(config_groups=both))
    assert groups.scheme_of(UP) == Scheme(8, 128)
    assert groups.scheme_of("lm_head") == Scheme(8, 128)
    assert groups.scheme_of(UP.replace(".3.", ".4.")) == Scheme(4, 128)
    # In either key layout.
    older = ConfigGroups.from_dict(declared(config_groups={"a": group(4, "re:^language_model.model.layers.3.mlp.*")}))
    assert older.scheme_of(UP) == Scheme(4, 128)
    assert older.scheme_of("lm_head") is None


REFUSED = {
    "asymmetric weights with zero points": declared({"symmetric": False}),
    "activation order 'group' (g_idx)": declared({"actorder": "group"}),
    "weights of type float (8 bit)": declared({"type": "float", "num_bits": 8}),
    "3-bit weights": declared({"num_bits": 3}),
    "dynamic weight scales": declared({"dynamic": True}),
    "the strategy tensor": declared({"strategy": "tensor", "group_size": None}),
    "the strategy block": declared({"strategy": "block", "block_structure": [128, 128]}),
    "quantized activations (input_activations)": declared(
        config_groups={"g": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": {"num_bits": 8}}}
    ),
    "the format float-quantized": declared(format="float-quantized"),
    "the format int-quantized": declared(format="int-quantized"),
    "kv_cache_scheme": declared(kv_cache_scheme={"num_bits": 8}),
    "transform_config": declared(transform_config={"config_groups": {"u": {}}}),
    "sparsity of format sparse-24-bitmask": declared(sparsity_config={"format": "sparse-24-bitmask"}),
    "quantization by bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "quantization by gptq": {"quant_method": "gptq", "bits": 4},
    "the scheme FP8_DYNAMIC": declared(config_groups={"FP8_DYNAMIC": ["Linear"]}),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_supported_is_named(named: str) -> None:
    with pytest.raises(CheckpointError) as error:
        ConfigGroups.from_dict(REFUSED[named])
    assert named in error.value.message
    assert "pack-quantized" in error.value.hint


def test_damaged_ones_are_errors_too() -> None:
    for broken in (declared(config_groups={}), declared(config_groups=None), declared(config_groups={"g": {}})):
        with pytest.raises(CheckpointError):
            ConfigGroups.from_dict(broken)
    with pytest.raises(CheckpointError, match="regular expression"):
        ConfigGroups.from_dict(declared(ignore=["re:("])).scheme_of(UP)


def test_what_is_written_reads_back() -> None:
    schemes = {
        **{f"model.language_model.layers.{n}.self_attn.q_proj": Scheme(4, 128) for n in (0, 1, 10)},
        "model.language_model.layers.1.mlp.down_proj": Scheme(8, 0),
        "model.language_model.layers.11.mlp.down_proj": Scheme(4, 64),
        "lm_head": Scheme(8, 0),
    }
    kept = ("model.language_model.layers.2.self_attn.q_proj", "model.vision_model.transformer.layers.1.mlp.fc1",
            "model.multi_modal_projector", "model.language_model.layers.1.cross_attn.q_proj")  # fmt: skip
    groups = ConfigGroups.from_dict(quantization_config(schemes, kept))
    assert {name: groups.scheme_of(name) for name in schemes} == schemes
    assert not any(groups.scheme_of(name) for name in kept)
