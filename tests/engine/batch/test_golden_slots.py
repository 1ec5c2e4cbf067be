"""The batch's own prefill and steps against Meta's numbers (tests/golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mllama_cli.benchmark.random_network import model_without_tokenizer
from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.conversation import ImagePart
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.prefill import Prompt, PromptReader
from mllama_cli.engine.batch.request import Request
from mllama_cli.engine.batch.slots import SlotCaches, Slots
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.vision import ImageCache
from mllama_cli.model.cache import KVCache
from mllama_cli.model.layers import result_of
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.visibility import image_spans
from mllama_cli.processing.image_processor import ImageTiles
from mllama_cli.processing.processor import ModelInputs

GOLDEN = Path(__file__).parents[2] / "golden" / "meta-tiny"
CASES: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
TENSORS = load_file(GOLDEN / "cases.safetensors")
PROMPTS = [name for name in CASES if name != "g"]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    config = MllamaConfig.from_dict(json.loads((GOLDEN / "config.json").read_text()))
    network = MllamaForConditionalGeneration(config).requires_grad_(False).eval()
    weights = {canonical(name): tensor for name, tensor in load_file(GOLDEN / "model.safetensors").items()}
    network.load_state_dict(weights, strict=True)
    return model_without_tokenizer(network, config, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def images(model: LoadedModel) -> ImageCache:
    return ImageCache(model.vision)


def prompt_of(model: LoadedModel, images: ImageCache, name: str, shown: str) -> Prompt:
    """Return the prompt of one case with the images of another, encoded, and an empty cache."""
    parts = []
    for index, image in enumerate(CASES[shown]["images"]):
        part = ImagePart(f"{shown}{index}".encode(), shown)
        tiles = ImageTiles(TENSORS[image["pixel_values"]], image["aspect_ratio_id"], (1, 1))
        for _ in images.encode_steps(part, tiles):
            pass
        parts.append(part)
    request = Request(ModelInputs(tuple(CASES[name]["prompt_token_ids"]), tuple(parts)), Sampling())
    request.spans = image_spans(request.ids, model.config.image_token_index)
    cache = KVCache(model.config.text_config)
    cache.reserve(len(request.ids) + 1)
    request.caches = SlotCaches(cache)
    return Prompt(request)


def admit(slots: Slots, prompt: Prompt, images: ImageCache) -> None:
    request, caches = prompt.request, prompt.request.caches
    assert caches is not None
    seen = request.seen_at_the_end
    caches.seen = images.get_group(seen) if seen else None
    slots.admit(caches, request.sampling, request.ids)


def read(slots: Slots, images: ImageCache, name: str, shown: str) -> Tensor:
    """Prefill one prompt in slices of seven tokens and give it a slot; return its last logits [1, vocab_size]."""
    prompt = prompt_of(slots.model, images, name, shown)
    logits = result_of(prompt.read(slots.model, images, 7))
    admit(slots, prompt, images)
    slots.choose(logits, slots.busy - 1)
    return logits


def test_prompts_prefilled_together_have_metas_logits(model: LoadedModel, images: ImageCache) -> None:
    prompts = [prompt_of(model, images, name, name) for name in PROMPTS]
    logits = PromptReader(model).read_together(prompts, images)
    for row, name in zip(logits, PROMPTS, strict=True):
        assert (row - TENSORS[f"{name}.logits"][-1]).abs().max() < 5e-5, name
    assert [prompt.new for prompt in prompts] == [()] * len(prompts)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_read_in_slices_has_metas_logits(model: LoadedModel, images: ImageCache, name: str) -> None:
    logits = read(Slots(model, 1), images, name, name)
    assert (logits[0] - TENSORS[f"{name}.logits"][-1]).abs().max() < 5e-5


@pytest.mark.parametrize("together", [False, True])
def test_metas_greedy_ids_while_the_neighbours_come_and_go(
    model: LoadedModel, images: ImageCache, together: bool
) -> None:
    slots = Slots(model, 3)
    if together:
        prompts = [prompt_of(model, images, name, shown) for name, shown in ((PROMPTS[0], PROMPTS[0]), ("g", "c"))]
        read_rows = PromptReader(model).read_together(prompts, images)
        for prompt in prompts:
            admit(slots, prompt, images)
        slots.choose(read_rows)
        logits = read_rows[1]
    else:
        read(slots, images, PROMPTS[0], PROMPTS[0])
        logits = read(slots, images, "g", "c")[0]
    slot = 1
    for step, expected in enumerate(CASES["g"]["generated_token_ids"]):
        assert int(logits.argmax()) == expected
        assert (logits - TENSORS["g.step_logits"][step]).abs().max() < 5e-5
        if slots.free:
            name = PROMPTS[step % len(PROMPTS)]
            read(slots, images, name, name)
        elif step % 2:
            gone = next(other for other in range(slots.busy) if other != slot)
            slots.release(gone)
            slot = gone if slot == slots.busy else slot
        logits = slots.logits()[slot]
        assert slots.step().wait()[slot] == (int(logits.argmax()), None, ())


def test_a_slot_about_an_image_beside_one_about_none(model: LoadedModel, images: ImageCache) -> None:
    blind = next(name for name in PROMPTS if not CASES[name]["images"])
    apart = Slots(model, 1)
    read(apart, images, blind, blind)
    expected = [apart.step().wait()[0] for _ in range(6)]
    slots = Slots(model, 2)
    read(slots, images, "g", "c")
    read(slots, images, blind, blind)
    assert [slots.step().wait()[1] for _ in range(6)] == expected
