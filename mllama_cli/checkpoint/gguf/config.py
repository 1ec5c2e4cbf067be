"""Make config.json from the entries of a model's GGUF files."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mllama_cli.checkpoint.gguf.header import GgufFile
from mllama_cli.checkpoint.gguf.names import ROPE_FACTORS
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.config import MllamaConfig, MllamaTextConfig, RopeScaling
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown

ARCHITECTURE = "mllama"
_OTHER_MODEL = "Only Llama 3.2 Vision is read: its text file, alone or with its projector."

_TEXT = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "cross_attention_layers": "attention.cross_attention_layers",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
}
_TEXT_NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "cross_attention_layers",
)
_VISION = {
    "hidden_size": "vision.embedding_length",
    "intermediate_size": "vision.feed_forward_length",
    "num_hidden_layers": "vision.block_count",
    "num_global_layers": "vision.global.block_count",
    "attention_heads": "vision.attention.head_count",
    "norm_eps": "vision.attention.layer_norm_epsilon",
    "image_size": "vision.image_size",
    "patch_size": "vision.patch_size",
    "max_num_tiles": "vision.max_num_tiles",
    "num_channels": "vision.num_channels",
    "intermediate_layers_indices": "vision.intermediate_layers_indices",
}
_EPSILON_DIGITS = 6
"""An epsilon is a float32 in the file: 1e-5 there is 9.999999747378752e-06."""


def merged_entries(files: Iterable[GgufFile]) -> dict[str, Any]:
    """Return the entries of a model's files; the first file's count. Raise CheckpointError for another model."""
    merged: dict[str, Any] = {}
    for file in files:
        found = file.entries.get("general.architecture")
        if found != ARCHITECTURE:
            raise CheckpointError(f"{file.path} is a GGUF file of the architecture {shown(found)}", _OTHER_MODEL)
        merged = {**file.entries, **merged}
    return merged


def is_projector(file: GgufFile) -> bool:
    """Return whether a file has the vision part alone."""
    return "token_embd.weight" not in file.tensors


def gguf_config(files: Iterable[GgufFile]) -> dict[str, Any]:
    """Return config.json of a model's files. Raise CheckpointError for entries that are missing or make no sense."""
    files = list(files)
    text = next((file for file in files if not is_projector(file)), None)
    if text is None:
        raise CheckpointError(f"{files[0].path} is a projector, without the language model", _OTHER_MODEL)
    entries = merged_entries([text, *(file for file in files if file is not text)])
    where = text.path
    made_text = {"model_type": "mllama_text_model", **_taken(entries, _TEXT)}
    if missing := [_TEXT[name] for name in _TEXT_NEEDED if name not in made_text]:
        raise CheckpointError(f"{where} has no entry {ARCHITECTURE}.{missing[0]}", _OTHER_MODEL)
    output = text.tensors.get("output.weight")
    vocabulary = output.shape[0] if output is not None and output.shape else entries.get(f"{ARCHITECTURE}.vocab_size")
    made_text |= {"vocab_size": vocabulary, "hidden_act": "silu", "tie_word_embeddings": False}
    made_text["rope_scaling"] = dict(vars(RopeScaling()))
    vision = {"model_type": "mllama_vision_model", "hidden_act": "gelu", **_taken(entries, _VISION)}
    config = {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": vocabulary,
        "text_config": made_text,
        "vision_config": vision,
        "torch_dtype": "bfloat16",
    }
    try:
        parsed = MllamaConfig.from_dict(config)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error.message.removeprefix('config.json: ')}", _OTHER_MODEL) from error
    _require_scaling(text, parsed.text_config)
    assert parsed.vision_config is not None
    vision["vision_output_dim"] = parsed.vision_config.vision_output_dim
    vision["supported_aspect_ratios"] = [list(pair) for pair in parsed.vision_config.supported_aspect_ratios]
    return config


def _taken(entries: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    values = {ours: entries.get(f"{ARCHITECTURE}.{theirs}") for ours, theirs in names.items()}
    return {
        name: float(f"{value:.{_EPSILON_DIGITS}g}") if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }


def _require_scaling(file: GgufFile, config: MllamaTextConfig) -> None:
    """Raise CheckpointError unless the frequencies' divisors in the file, if there are any, are Llama 3.1's."""
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return
    wanted = torch.tensor(list(_divisors(config)))
    with SliceReader() as reader:
        found = reader.raw_bytes(file.path, tensor.start, tensor.end - tensor.start)
    same = tensor.format.name == "F32" and tensor.elements == len(wanted)
    if not same or not torch.allclose(found.view(torch.float32), wanted, rtol=1e-3):
        raise CheckpointError(f"{file.path}: {ROPE_FACTORS} is not the RoPE scaling of Llama 3.2", _OTHER_MODEL)


def _divisors(config: MllamaTextConfig) -> Iterable[float]:
    """Yield what llama3's scaling divides each frequency by, from 1 for the high ones to the factor."""
    scaling = config.rope_scaling
    for index in range(0, config.head_dim, 2):
        turns = scaling.original_max_position_embeddings / (
            2 * math.pi * config.rope_theta ** (index / config.head_dim)
        )
        share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        share = min(max(share, 0.0), 1.0)
        yield 1 / ((1 - share) / scaling.factor + share)
