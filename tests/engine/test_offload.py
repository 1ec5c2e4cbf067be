"""Which weights are offloaded for the memory of a GPU, and the error if nothing helps."""

import re
from pathlib import Path

import pytest
import torch

from mllama_cli.benchmark.gpu_fit import fit, usable_bytes
from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.weights import loader
from mllama_cli.engine.weights.memory import (
    GPU_PREFILL_CHUNKS,
    choose_prefill_chunk,
    longest_context,
    min_working_bytes,
)
from mllama_cli.engine.weights.offload import (
    PLANS,
    OffloadPlan,
    WeightSizes,
    choose_plan,
    plan_for,
    refusal,
    sizes_of_shape,
)
from mllama_cli.engine.weights.shapes import SHAPES

MB = 2**20
SIZES = {
    "model.language_model.embed_tokens.weight": 100 * MB,
    "model.language_model.layers.0.mlp.up_proj.weight": 300 * MB,
    "model.vision_model.patch_embedding.weight": 5 * MB,
    "model.vision_model.gated_positional_embedding.tile_embedding.weight": 7 * MB,
    **{f"model.vision_model.transformer.layers.{n}.mlp.fc{i}.weight": 10 * MB for n in range(9) for i in (1, 2)},
    **{f"model.vision_model.global_transformer.layers.{n}.mlp.fc1.weight": 30 * MB for n in range(2)},
    "lm_head.weight": 88 * MB,
}
WEIGHTS = WeightSizes(740 * MB, 100 * MB, 240 * MB, 30 * MB)
NOTHING, EMBEDDINGS, TOWER, BOTH = PLANS


def test_parts_are_recognised_by_name_and_the_largest_layer_is_found() -> None:
    assert WeightSizes.of(SIZES) == WEIGHTS
    assert WeightSizes.of({"model.embed_tokens.weight": 5, "model.layers.0.mlp.up_proj.weight": 6}) == WeightSizes(
        11, 5
    )


@pytest.mark.parametrize(
    ("free", "plan"),
    [
        (790, NOTHING), (789, EMBEDDINGS), (690, EMBEDDINGS), (689, TOWER), (610, TOWER), (609, BOTH), (510, BOTH),
        (509, None),
    ],
)  # fmt: skip
def test_the_least_that_fits_goes_to_the_host(free: int, plan: OffloadPlan | None) -> None:
    assert choose_plan(WEIGHTS, 50 * MB, free * MB) == plan
    if plan in (EMBEDDINGS, BOTH):
        instead = TOWER if free >= 610 else None
        assert choose_plan(WEIGHTS, 50 * MB, free * MB, can_offload_embeddings=lambda: False) == instead


def test_can_offload_embeddings_is_not_called_where_everything_fits() -> None:
    def never() -> bool:
        raise AssertionError

    assert choose_plan(WEIGHTS, 0, 740 * MB, can_offload_embeddings=never) == NOTHING


def test_a_plan_names_parameters_and_says_what_it_is() -> None:
    embeddings, layer, around = (list(SIZES)[n] for n in (0, 5, 3))
    assert [BOTH.covers(name) for name in (embeddings, layer, around)] == [True, True, False]
    assert not any(map(NOTHING.covers, SIZES))
    assert (str(NOTHING), str(BOTH)) == ("", "embeddings and vision tower in host memory")
    assert [bool(plan.notice) for plan in PLANS] == [False, False, True, True]


def test_a_chat_without_images_is_not_refused_where_only_the_tower_is_too_large() -> None:
    config = SHAPES["11b"]
    work = min_working_bytes(config, 2)
    text = {name: size for name, size in SIZES.items() if "vision" not in name}
    free = WEIGHTS.on_gpu(BOTH) + work - 1  # below what the whole model needs, whatever is offloaded
    plan = plan_for(config, SIZES, text, free, 2, lambda: True)
    assert plan is not None
    assert plan.vision, "so that there is room when an image comes after all"
    assert plan_for(config, SIZES, {}, free, 2, lambda: True) is None


def test_int4_runs_on_8_gb_with_a_context_and_several_captions() -> None:
    found = fit(SHAPES["11b"], "int4", usable_bytes(8))
    assert found is not None
    assert found.plan == BOTH
    assert found.context >= 4096
    assert found.slots >= 2


def test_the_refusal_says_what_is_needed_and_its_hint_what_would_fit() -> None:
    config, device = SHAPES["11b"], torch.device("cuda:0")

    def refused(dtype: torch.dtype, packed: str, card: int, quantize: str | None = None) -> tuple[str, str]:
        weights = sizes_of_shape(config, quantize, dtype.itemsize)
        error = refusal(config, weights, usable_bytes(card), device, dtype, packed)
        assert isinstance(error, MemoryShortageError)
        assert "\n" not in error.message + error.hint
        return error.message, error.hint

    message, hint = refused(torch.bfloat16, "", 8)
    assert re.search(r"needs 1\d\.\d GiB of cuda:0 .* but 7\.5 GiB are free", message)
    assert "--quantize int4" in hint
    assert "--quantize int4" in refused(torch.bfloat16, "int8", 8, "int8")[1]
    assert "--dtype bfloat16" in refused(torch.float32, "", 24)[1]
    assert "--quantize int4" not in refused(torch.bfloat16, "int4", 8, "int4")[1]
    assert "--device cpu" in refused(torch.bfloat16, "stored", 8)[1]
    large = refusal(SHAPES["90b"], sizes_of_shape(SHAPES["90b"], None), usable_bytes(8), device, torch.bfloat16, "")
    assert "--device cpu" in large.hint
    assert "int4" not in large.hint


def test_an_engine_decides_for_the_whole_model_when_its_text_is_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(checkpoint, "tiny", device="cpu", dtype="float32")
    weights = engine.model.weights
    assert weights is not None
    weights.device = torch.device("cuda:0")  # only for the decision
    sizes = WeightSizes.of({name: info.nbytes for name, info in weights.reader.tensors.items()})
    work = min_working_bytes(engine.config, 4)
    monkeypatch.setattr(loader.StoredWeights, "_can_offload_embeddings", lambda self: True)
    for plan in PLANS:
        monkeypatch.setattr(loader, "free_bytes", lambda device, plan=plan: sizes.on_gpu(plan) + work)
        assert sizes.on_gpu(weights.choose_plan({"text"})) <= sizes.on_gpu(plan)
    monkeypatch.setattr(loader, "free_bytes", lambda device: work // 2)
    with pytest.raises(MemoryShortageError):
        weights.choose_plan({"text"})


def test_chunks_are_smaller_where_memory_is_small() -> None:
    config, gb = SHAPES["11b"], 10**9
    assert choose_prefill_chunk(config, 2, "cpu", 0) == 1024
    assert choose_prefill_chunk(config, 2, "cuda", 2 * gb) == 1024
    assert choose_prefill_chunk(config, 2, "cuda", 0) == 1024
    assert choose_prefill_chunk(config, 2, "cuda", 50 * gb) == GPU_PREFILL_CHUNKS[0]
    found = [choose_prefill_chunk(config, 2, "cuda", free * gb // 10) for free in range(100)]
    assert found == sorted(found)


def test_a_context_grows_with_memory_up_to_the_models() -> None:
    config, gb = SHAPES["11b"], 10**9
    rows = 1024
    assert longest_context(config, 2, 0, rows) == 0
    assert longest_context(config, 2, min_working_bytes(config, 2), rows) >= 4096
    assert longest_context(config, 2, 100 * gb, rows) == config.text_config.max_position_embeddings
