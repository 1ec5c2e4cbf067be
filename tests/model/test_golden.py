"""Compare the network with Meta's own numbers (tests/golden/README.md)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.forward import forward
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.visibility import image_spans

GOLDEN = Path(__file__).parents[1] / "golden" / "meta-tiny"
CASES: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
PROMPTS = [name for name in CASES if name != "g"]
TENSORS = load_file(GOLDEN / "cases.safetensors")
# Relative error that the README expects of logits and of vision tokens, by dtype.
TOLERANCES = {torch.float32: (3e-6, 3e-6), torch.float16: (4e-3, 2e-3), torch.bfloat16: (2.5e-2, 1.4e-2)}

Loader = Callable[[torch.dtype], MllamaForConditionalGeneration]


@pytest.fixture(scope="module")
def load() -> Loader:
    config = MllamaConfig.from_dict(json.loads((GOLDEN / "config.json").read_text()))
    weights = {canonical(name): tensor for name, tensor in load_file(GOLDEN / "model.safetensors").items()}

    def build(dtype: torch.dtype) -> MllamaForConditionalGeneration:
        network = MllamaForConditionalGeneration(config).requires_grad_(False)
        network.load_state_dict(weights, strict=True)
        return network.to(dtype).eval()

    return build


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", PROMPTS)
def test_vision_tokens_and_logits(load: Loader, name: str, dtype: torch.dtype) -> None:
    network, case = load(dtype), CASES[name]
    pixels = [TENSORS[image["pixel_values"]] for image in case["images"]]
    ratio_ids = [image["aspect_ratio_id"] for image in case["images"]]
    for image, pixel_values, id_ in zip(case["images"], pixels, ratio_ids, strict=True):
        tiles = pixel_values[None].to(dtype)
        features = network.model.vision_model(tiles, torch.tensor([id_]), all_tiles=True)
        tokens = network.model.multi_modal_projector(features)[0]
        expected = TENSORS[image["vision_tokens"]]
        assert relative(tokens, expected) < TOLERANCES[dtype][1]
        if dtype == torch.float32:
            assert (tokens - expected).abs().max() < 5e-5
    logits = network(torch.tensor([case["prompt_token_ids"]]), pixels, ratio_ids)[0]
    expected = TENSORS[f"{name}.logits"]
    assert relative(logits, expected) < TOLERANCES[dtype][0]
    if dtype == torch.float32:
        assert (logits - expected).abs().max() < 5e-5
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", [name for name in PROMPTS if CASES[name]["images"]])
def test_which_rows_see_which_image(name: str) -> None:
    case = CASES[name]
    length = len(case["prompt_token_ids"])
    ours = [[s.start, length if s.end is None else s.end] for s in image_spans(case["prompt_token_ids"], 512)]
    assert ours == [[start, length if end == -1 else end] for start, end in case["image_token_ranges"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_greedy_ids_decoded_one_at_a_time(load: Loader, dtype: torch.dtype) -> None:
    network, case, image = load(dtype), CASES["g"], CASES["c"]["images"][0]
    prompt = case["prompt_token_ids"]
    encoded = network.model.encode_image(TENSORS[image["pixel_values"]], image["aspect_ratio_id"])
    cross = CrossKVCache.from_images([[encoded]])
    spans = [image_spans(prompt, 512)]
    cache = KVCache(network.config.text_config, dtype=dtype)
    logits = forward(network, torch.tensor([prompt]), cache, cross, spans)
    for step, expected in enumerate(case["generated_token_ids"]):
        assert int(logits[0].argmax()) == expected
        if dtype == torch.float32:
            assert (logits[0] - TENSORS["g.step_logits"][step]).abs().max() < 5e-5
        logits = forward(network, torch.tensor([[expected]]), cache, cross, spans)
