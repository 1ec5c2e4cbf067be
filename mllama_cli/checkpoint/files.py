"""Find the weight files of a checkpoint folder: those in the index, else model.safetensors."""

import shlex
from pathlib import Path

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import one_line, shown
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json

SINGLE_FILE = "model.safetensors"
WAY_OUT = (
    "Get the 16-bit model and run `mllama quantize`, or one in FP8 (RedHatAI) or 4 bits by bitsandbytes (unsloth)."
)
"""What to do about weights that are quantized in a way that is not supported."""

_HUGGING_FACE = "Point to a folder in Hugging Face layout with safetensors weights."
GGUF_MAGIC = b"GGUF"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the files, by name. Raise CheckpointError if there is none, one is missing, or the index is damaged.

    Other *.safetensors in the folder are ignored: they repeat the weights (consolidated.safetensors) or are adapters.
    """
    index = folder / INDEX_FILE
    if is_file(index):
        files = [folder / name for name in index_names(read_json(index), str(index))]
        missing = [shown(file.name)[1:-1] for file in files if not is_file(file)]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing[:3])}",
                "The download is incomplete: run `mllama download` again.",
            )
        return files
    if is_file(folder / SINGLE_FILE):
        return [folder / SINGLE_FILE]
    what, hint = other_layout(folder) or (f"has no weights (no {SINGLE_FILE} or {INDEX_FILE})", _HUGGING_FACE)
    raise CheckpointError(f"{folder} {what}", hint)


def other_layout(folder: Path) -> tuple[str, str] | None:
    """Return what a folder is that has no weights in our layout, and what to do; None if nothing in it tells."""
    if is_adapter(folder):
        base = adapter_base(folder)
        return (
            f"is a LoRA adapter{f' for {base}' if base else ''}, not a whole model",
            f"Name the model it was made for, and the adapter: -m {base or 'MODEL'} --adapter {folder}",
        )
    found = sorted(name for name in _names(folder) if name.endswith((".bin", ".pth", ".pt", ".gguf", ".safetensors")))
    if gguf := [name for name in found if name.endswith(".gguf")]:
        file = shlex.quote(str(folder / gguf[0]))
        return f"is a GGUF model ({shown(gguf[0])[1:-1]})", f"`mllama import {file}` makes a model of it."
    if "params.json" in _names(folder) or any(name.startswith("consolidated.") for name in found):
        return (
            "has Meta's own files (consolidated.*, params.json)",
            f"`mllama import {folder}` makes a model of them.",
        )
    if any(name.endswith(".uqff") for name in _names(folder)):
        return "is quantized to UQFF for mistral.rs, which is not supported", WAY_OUT
    if found and not found[0].endswith(".safetensors"):
        return (
            f"has its weights in {shown(found[0])[1:-1]}, a pickle, which could run any program when it is read",
            "Get the model in safetensors, or save it so with transformers (save_pretrained).",
        )
    return None


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter of PEFT's."""
    return is_file(folder / ADAPTER_CONFIG)


def adapter_base(folder: Path) -> str:
    """Return the name of the model that an adapter was made for, fit for a message; empty if it does not say."""
    try:
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    except CheckpointError:
        return ""
    return one_line(base, 120) if isinstance(base, str) else ""


def _names(folder: Path) -> list[str]:
    try:
        return [file.name for file in folder.iterdir()]
    except OSError:
        return []


def is_gguf(file: Path) -> bool:
    """Return whether a file begins like a GGUF file."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def index_names(index: dict[str, object], where: str) -> list[str]:
    """Return the file names in an index, sorted. Raise CheckpointError, starting with ``where``, if there are none."""
    weight_map = index.get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{where} names no weights", COPY_AGAIN)
    return sorted(set(names))


def is_complete(folder: Path) -> bool:
    """Return whether every weight file is there."""
    try:
        return bool(weight_files(folder))
    except CheckpointError:
        return False
