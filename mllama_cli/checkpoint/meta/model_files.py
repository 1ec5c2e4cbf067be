"""Find Meta's files in a folder, and make config.json from params.json and the shapes of the weights."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.meta.names import ENCODER, PATCHES, cross_attention_layers
from mllama_cli.checkpoint.meta.pickled import PickledTensor
from mllama_cli.core.config import MAX_LAYERS, MllamaConfig, MllamaVisionConfig, RopeScaling
from mllama_cli.core.errors import CheckpointError, UsageError
from mllama_cli.core.text import shown
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json

PARAMS_FILE, TOKENIZER_FILE = "params.json", "tokenizer.model"

_SHARD = re.compile(r"consolidated(?:\.(\d{2}))?\.pth")
_OTHER_MODEL = "Only Llama 3.2 Vision is read: 11B and 90B, with or without Instruct."


@dataclass(frozen=True)
class MetaFiles:
    """A folder's files: ``shards`` in order, ``params`` as stored, and the tokenizer's file."""

    folder: Path
    shards: tuple[Path, ...]
    params: Mapping[str, Any]
    tokenizer: Path


def is_meta_folder(folder: Path) -> bool:
    """Return whether a folder has weights in Meta's layout."""
    return is_file(folder / PARAMS_FILE) and any(_SHARD.fullmatch(name) for name in _names(folder))


def meta_files(folder: Path) -> MetaFiles:
    """Return Meta's files in a folder. Raise UsageError if it has none, CheckpointError if one is missing."""
    if not is_meta_folder(folder):
        raise UsageError(
            f"{folder} has no consolidated.*.pth with its params.json",
            "Name the folder that `llama download` made, or `original` in a hub repository.",
        )
    found = sorted(name for name in _names(folder) if _SHARD.fullmatch(name))
    count = len(found)
    wanted = [f"consolidated.{number:02d}.pth" for number in range(count)]
    if count > 1 and found != wanted:
        missing = sorted({*wanted} - {*found})
        raise CheckpointError(
            f"{folder} has {count} weight files, but not {', '.join(missing[:3])}",
            "The download is incomplete, or files of two models are in the folder.",
        )
    if not is_file(folder / TOKENIZER_FILE):
        raise CheckpointError(f"{folder} lacks {TOKENIZER_FILE}", "Get it where the weights are from.")
    return MetaFiles(
        folder, tuple(folder / name for name in found), read_json(folder / PARAMS_FILE), folder / TOKENIZER_FILE
    )


def _names(folder: Path) -> Iterable[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def meta_config(
    files: MetaFiles,
    shards: Sequence[Mapping[str, PickledTensor]],
    vocabulary: int,
    vision: MllamaVisionConfig | None = None,
) -> dict[str, Any]:
    """Return config.json of a model's files.

    ``vocabulary`` is the number of tokens, special ones included. Heads and tapped layers of the vision tower are fixed
    in Meta's code, so that only ``vision`` (default: the released models') says them. Raises CheckpointError for
    entries that are missing or make no sense.
    """
    params, where = files.params, files.folder / PARAMS_FILE
    released = vision or MllamaVisionConfig()
    own, cross = (_count(params, name, where) for name in ("n_layers", "vision_num_cross_attention_layers"))
    if cross > own:
        raise CheckpointError(f"{where}: {cross} cross-attention layers among {own}", _OTHER_MODEL)
    if not params.get("use_scaled_rope"):
        raise CheckpointError(f"{where}: use_scaled_rope is {shown(params.get('use_scaled_rope'))}", _OTHER_MODEL)
    first = shards[0]
    for stack, count in (("layers", own), ("cross_attention_layers", cross)):
        if (found := _layers(first, f"text_model.{stack}.")) != count:
            raise CheckpointError(
                f"{files.shards[0]} has {found} {stack.replace('_', ' ')}, {PARAMS_FILE} says {count}",
                "The files do not belong together, or one is damaged.",
            )
    heads = _count(params, "n_heads", where)
    text = {
        "model_type": "mllama_text_model",
        "vocab_size": vocabulary,
        "hidden_size": _count(params, "dim", where),
        "intermediate_size": _rows(first, "text_model.layers.0.feed_forward.w1.weight") * len(shards),
        "num_hidden_layers": own + cross,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if params.get("n_kv_heads") is None else _count(params, "n_kv_heads", where),
        "cross_attention_layers": list(cross_attention_layers(own, cross)),
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": params.get("norm_eps"),
        "rope_theta": params.get("rope_theta"),
        "rope_scaling": dict(vars(RopeScaling())),
        "tie_word_embeddings": False,
    }
    patches = first.get(PATCHES)
    side = math.isqrt(patches.shape[-1] // 3) if patches is not None and patches.shape else 0
    tower = {
        "model_type": "mllama_vision_model",
        "hidden_act": "gelu",
        "hidden_size": _rows(first, f"{ENCODER}class_embedding"),
        "intermediate_size": _rows(first, f"{ENCODER}transformer.resblocks.0.mlp.c_fc.weight") * len(shards),
        "num_hidden_layers": _layers(first, f"{ENCODER}transformer.resblocks."),
        "num_global_layers": _layers(first, f"{ENCODER}global_transformer.resblocks."),
        "attention_heads": released.attention_heads,
        "intermediate_layers_indices": list(released.intermediate_layers_indices),
        "image_size": params.get("vision_chunk_size"),
        "max_num_tiles": params.get("vision_max_num_chunks"),
        "patch_size": side,
        "num_channels": 3,
        "norm_eps": released.norm_eps,
    }
    config = {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": vocabulary,
        "text_config": text,
        "vision_config": tower,
        "torch_dtype": "bfloat16",
    }
    try:
        parsed = MllamaConfig.from_dict(config).vision_config
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error.message.removeprefix('config.json: ')}", _OTHER_MODEL) from error
    assert parsed is not None
    tower["vision_output_dim"] = parsed.vision_output_dim
    tower["supported_aspect_ratios"] = [list(pair) for pair in parsed.supported_aspect_ratios]
    return config


def _count(params: Mapping[str, Any], name: str, where: Path) -> int:
    value = params.get(name)
    if type(value) is not int or not 0 < value < 2**31 or (name.endswith("layers") and value > MAX_LAYERS):
        raise CheckpointError(f"{where}: {name} is {shown(value)}", _OTHER_MODEL)
    return value


def _rows(shard: Mapping[str, PickledTensor], name: str) -> int:
    tensor = shard.get(name)
    if tensor is None or not tensor.shape:
        file = next(iter(shard.values())).file if shard else "A weight file"
        raise CheckpointError(f"{file} lacks {name}", _OTHER_MODEL)
    return tensor.shape[0]


def _layers(shard: Mapping[str, PickledTensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in shard if name.startswith(prefix)})
