"""Find the matrices that lose most in 4 bits and so get 8 by default, estimated from samples of their rows."""

from collections.abc import Callable, Iterable, Mapping

import torch

from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import as_number
from mllama_cli.quantization.rounding import NotFiniteError, quantize_matrix
from mllama_cli.quantization.schemes import Scheme

Measure = Callable[[str], float]
"""Estimates the relative squared error in 4 bits of the linear layer with a name."""

RELEASED_DEPTH = 40
RELEASED_LAYERS = (1,)
RELEASED_DOWN = (13, 18)
"""Most sensitive in the released 11B models (40 layers): layer 1, and down_proj of two cross-attention layers."""

PROBE_POSITIONS = 4
PROBE_ROWS = 8
"""Rows at each position: 4 x 8 rows of 28672 weights are 1.8 MB, with an error close to the whole matrix's."""


def sensitive_linears(names: Iterable[str], config: MllamaTextConfig, measure: Measure) -> set[str]:
    """Return those of the language model's linear layers ``names`` that get 8 bits.

    In every model these are the output layer, and o_proj of cross-attention, whose output a gate multiplies. A model of
    40 layers adds those known from the 11B. Others add the same share of layers by measured error: one whole layer in
    40 (at least one) by the mean over its matrices, and one down_proj in 20 (at least one) of the remaining layers.
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
    """Return the number of the decoder layer that a module of the language model is in."""
    return as_number(name.partition(".layers.")[2].partition(".")[0])


def down_of(names: Iterable[str]) -> str:
    return next((name for name in names if name.endswith(".mlp.down_proj")), "")


class ErrorProbe:
    """Estimates a linear layer's relative squared error, rounded to nearest, from a sample of its rows."""

    def __init__(self, slices: SliceReader, tensors: Mapping[str, StoredTensor], scheme: Scheme) -> None:
        self._slices, self._tensors, self._scheme = slices, tensors, scheme

    def __call__(self, name: str) -> float:
        stored = self._tensors[f"{name}.weight"]
        rows = stored.info.shape[0]
        last = max(rows - PROBE_ROWS, 0)
        starts = sorted({index * last // (PROBE_POSITIONS - 1) for index in range(PROBE_POSITIONS)})
        sample = torch.cat([self._slices.rows(stored, start, start + PROBE_ROWS) for start in starts])
        try:
            rounded = quantize_matrix(sample, self._scheme.fitted(sample.shape[1]), "rtn")
        except NotFiniteError:
            raise not_finite(stored.stored_name, stored.file.name) from None
        return rounded.error / max(rounded.energy, 1e-30)


def not_finite(name: str, file: str) -> CheckpointError:
    """Return the error for a tensor that no scale fits."""
    return CheckpointError(f"{name} in {file} holds NaN or infinity", "The file is damaged: download or copy it again.")
