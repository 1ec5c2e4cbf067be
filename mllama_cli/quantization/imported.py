"""What every import of a model from another format has in common: how layers are packed, and the files next to them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig
from mllama_cli.processing.chat_template import OUR_TEMPLATE
from mllama_cli.processing.tokenizer_build import tokenizer_config
from mllama_cli.quantization.policy import LayerSchemes, QuantizeOptions, choose_schemes
from mllama_cli.quantization.rounding import Method
from mllama_cli.quantization.schemes import GROUP_SIZES, Scheme
from mllama_cli.quantization.sensitivity import ErrorProbe

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
"""The released models' own sampling defaults."""

_METHODS: dict[int, Method] = {4: "search", 8: "rtn"}
"""In 8 bits a search gains a hundredth of what 4 bits lose."""


def imported_layers(
    linears: Mapping[str, int], weights: Mapping[str, StoredTensor], config: MllamaConfig, bits: int
) -> tuple[LayerSchemes, Method]:
    """Return how the linear layers are packed, and the method of rounding; 16 bits leave them as they are."""
    if bits == 16:
        return LayerSchemes({}, tuple(linears), ()), _METHODS[8]
    options = QuantizeOptions(Scheme(bits, GROUP_SIZES[0]), _METHODS[bits])
    with SliceReader() as slices:
        probe = ErrorProbe(slices, weights, options.scheme)
        return choose_schemes(linears, config.text_config, options, probe), options.method


def imported_companions(
    config: MllamaConfig,
    tokenizer: bytes,
    ids: Mapping[str, Any],
    *,
    sampling: Mapping[str, Any] | None = None,
    template: bool = True,
) -> dict[str, bytes | Path]:
    """Return the files of a model besides its weights and config.json, by name.

    ``ids`` are those of special tokens (``token_ids``); ``sampling`` overrides the released defaults. A base model has
    no chat ``template``.
    """
    generation = {**SAMPLING, **(sampling or {}), **ids}
    assert config.vision_config is not None
    preprocessor = ImageProcessorConfig(config.vision_config.image_size, config.vision_config.max_num_tiles)
    made: dict[str, bytes | Path] = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _json(tokenizer_config(config.text_config.max_position_embeddings)),
        "generation_config.json": _json(generation),
        "preprocessor_config.json": _json(preprocessor.to_dict()),
    }
    return {**made, "chat_template.jinja": OUR_TEMPLATE} if template else made


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
