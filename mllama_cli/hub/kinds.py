"""What kind of model a folder holds, by its small files."""

from pathlib import Path
from typing import Any

from mllama_cli.core.config import MODEL_TYPES
from mllama_cli.core.errors import CheckpointError
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json


def kind(folder: Path) -> str:
    """Return "instruct" or "base", by whether there is a chat template, with "text-only" and "quantized to N bits"."""
    config = config_of(folder)
    words = ["instruct" if _has_template(folder) else "base"]
    if config.get("model_type") == "mllama_text_model":
        words.append("text-only")
    if config.get("quantization_config"):
        words.append(_quantized(config["quantization_config"]))
    return ", ".join(words)


def _quantized(declared: Any) -> str:
    """Return "quantized", with the fewest bits of its weights if config.json says them."""
    if not isinstance(declared, dict):
        return "quantized"
    for count, key in ((4, "load_in_4bit"), (8, "load_in_8bit")):  # of bitsandbytes
        if declared.get(key) is True:
            return f"quantized to {count} bits"
    width = declared.get("bits")  # of GPTQ, AutoRound and AWQ
    if isinstance(width, int) and width is not True and 0 < width <= 16:
        return f"quantized to {width} bits"
    groups = declared.get("config_groups")
    weights = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else []
    )
    bits = [found for each in weights if isinstance(each, dict) and isinstance(found := each.get("num_bits"), int)]
    return f"quantized to {min(bits)} bits" if bits else "quantized"


def _has_template(folder: Path) -> bool:
    if is_file(folder / "chat_template.jinja") or is_file(folder / "chat_template.json"):
        return True
    return bool(_object(folder / "tokenizer_config.json").get("chat_template"))


def config_of(folder: Path) -> dict[str, Any]:
    """Return the contents of config.json; empty if it is missing or damaged."""
    return _object(folder / "config.json")


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def is_mllama(folder: Path) -> bool:
    """Return whether the folder's config.json names a model type that we run."""
    return config_of(folder).get("model_type") in MODEL_TYPES
