"""The batch's own steps against Meta's numbers (tests/golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mllama_cli.benchmark.random_network import model_without_tokenizer
from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.batch.slots import Prompt, Slots
from mllama_cli.model.mllama import MllamaForConditionalGeneration

GOLDEN = Path(__file__).parents[1] / "golden" / "meta-tiny"
CASES: dict[str, Any] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
TENSORS = load_file(GOLDEN / "cases.safetensors")


def slots_of(count: int) -> Slots:
    config = MllamaConfig.from_dict(json.loads((GOLDEN / "config.json").read_text()))
    network = MllamaForConditionalGeneration(config).requires_grad_(False).eval()
    weights = {canonical(name): tensor for name, tensor in load_file(GOLDEN / "model.safetensors").items()}
    network.load_state_dict(weights, strict=True)
    return Slots(model_without_tokenizer(network, config, dtype=torch.float32, device=torch.device("cpu")), count)


@torch.inference_mode()
def prompt_of(slots: Slots, name: str, images: str) -> Prompt:
    network = slots.model.network
    assert isinstance(network, MllamaForConditionalGeneration)
    pictures = [
        network.model.encode_image(TENSORS[image["pixel_values"]], image["aspect_ratio_id"])
        for image in CASES[images]["images"]
    ]
    digests = tuple(f"{images}{index}" for index in range(len(pictures)))
    return Prompt(tuple(CASES[name]["prompt_token_ids"]), digests, tuple(pictures))


def test_prompts_prefilled_together_have_metas_logits() -> None:
    names = [name for name in CASES if name != "g"]
    slots = slots_of(len(names))
    logits = slots.fill([prompt_of(slots, name, name) for name in names])
    for row, name in zip(logits, names, strict=True):
        assert (row - TENSORS[f"{name}.logits"][-1]).abs().max() < 5e-5, name


def test_metas_greedy_ids_while_the_neighbours_come_and_go() -> None:
    others = [name for name in CASES if name != "g"]
    slots = slots_of(3)
    slots.fill([prompt_of(slots, others[0], others[0])])
    logits = slots.fill([prompt_of(slots, "g", "c")])[0]
    slot_index = 1
    for step, expected in enumerate(CASES["g"]["generated_token_ids"]):
        assert int(logits.argmax()) == expected
        assert (logits - TENSORS["g.step_logits"][step]).abs().max() < 5e-5
        if slots.free:
            name = others[step % len(others)]
            slots.fill([prompt_of(slots, name, name)])
        elif step % 2:
            slots.release(gone := next(slot for slot in range(slots.busy) if slot != slot_index))
            slot_index = gone if slot_index == slots.busy else slot_index
        tokens = [step] * slots.busy
        tokens[slot_index] = expected
        logits = slots.step(tokens)[slot_index]
