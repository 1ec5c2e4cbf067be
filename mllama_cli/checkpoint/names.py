"""Map the names of weights in files to ours, which are those of recent save_pretrained.

| layout                        | language model         | output layer                  | vision tower         |
|-------------------------------|------------------------|-------------------------------|----------------------|
| transformers 4.45 (the Hub's) | language_model.model.* | language_model.lm_head.weight | vision_model.*       |
| newer save_pretrained         | model.language_model.* | lm_head.weight                | model.vision_model.* |
| text-only (MllamaForCausalLM) | model.*                | lm_head.weight                | -                    |
"""

from typing import Literal

from mllama_cli.core.config import MllamaTextConfig

WeightPart = Literal["text", "vision"]

_FROM_HUB = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_model.", "model.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def canonical(name: str) -> str:
    """Return our name of a weight that a file calls ``name``."""
    for old, new in _FROM_HUB:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def hub_name(name: str) -> str:
    """Return the 4.45 layout's name, which every version of transformers loads, of our weight ``name``."""
    for old, new in _FROM_HUB:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def part(name: str, config: MllamaTextConfig) -> WeightPart:
    """Return whether a text-only chat needs this weight ("text"), or only images do ("vision").

    The cross-attention layers belong to the images: without one they are skipped.
    """
    if name.startswith(("model.vision_model.", "model.multi_modal_projector.")):
        return "vision"
    pieces = name.split(".layers.")
    if len(pieces) == 2 and int(pieces[1].split(".")[0]) in config.cross_attention_layers:
        return "vision"
    return "text"
