"""Which matrices suffer most from 4 bits, and so get 8 by default."""

from collections.abc import Callable, Iterable

from mllama_cli.core.config import MllamaTextConfig

Measure = Callable[[str], float]
"""The relative squared error of a linear layer in 4 bits, by its name: from a sample of its rows."""

RELEASED_DEPTH = 40
RELEASED_LAYERS = (1,)
RELEASED_DOWN = (13, 18)
"""Known of the released 11B models (40 layers): all of layer 1, and down_proj of two cross-attention layers."""


def sensitive(names: Iterable[str], config: MllamaTextConfig, measure: Measure) -> set[str]:
    """Those of the language model's linear layers ``names`` that get 8 bits.

    In every model: the output layer, and o_proj of cross-attention, whose output a gate multiplies. In a model of 40
    layers the ones known of 11B. In others as large a share of the layers, chosen by measured error: one whole
    layer in 40 (at least one) where the mean over its matrices is largest, and one down_proj in 20 (at least one) of
    the remaining layers where its own is.
    """
    names = list(names)
    always = {name for name in names if name == "lm_head" or name.endswith(".cross_attn.o_proj")}
    layers: dict[int, list[str]] = {}
    for name in names:
        number = layer_of(name)
        if number is not None:
            layers.setdefault(number, []).append(name)
    if config.num_hidden_layers == RELEASED_DEPTH:
        whole, down = list(RELEASED_LAYERS), list(RELEASED_DOWN)
    else:
        errors = {number: {name: measure(name) for name in inside} for number, inside in layers.items()}
        means = {number: sum(found.values()) / len(found) for number, found in errors.items()}
        whole = sorted(means, key=lambda n: -means[n])[: max(1, round(len(means) / RELEASED_DEPTH))]
        rest = {number: errors[number].get(down_of(layers[number]), 0.0) for number in errors if number not in whole}
        down = sorted(rest, key=lambda n: -rest[n])[: max(1, round(len(means) / 20))]
    return (
        always
        | {name for number in whole for name in layers.get(number, ())}
        | {down_of(layers[number]) for number in down if number in layers}
    )


def layer_of(name: str) -> int | None:
    """The number of the decoder layer that a module of the language model is in."""
    number = name.partition(".layers.")[2].partition(".")[0]
    return int(number) if number.isdecimal() else None


def down_of(names: Iterable[str]) -> str:
    return next((name for name in names if name.endswith(".mlp.down_proj")), "")
