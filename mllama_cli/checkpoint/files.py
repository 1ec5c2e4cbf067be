"""Find the weight files of a checkpoint folder: those in the index, else model.safetensors."""

from pathlib import Path

from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the files, by name. Raise CheckpointError if there is none, one is missing, or the index is damaged.

    Other *.safetensors in the folder are ignored: they repeat the weights (consolidated.safetensors) or are adapters.
    """
    index = folder / INDEX_FILE
    if is_file(index):
        files = [folder / name for name in index_names(read_json(index), str(index))]
        missing = [file.name for file in files if not is_file(file)]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing[:3])}",
                "The download is incomplete: run `mllama download` again.",
            )
        return files
    if is_file(folder / SINGLE_FILE):
        return [folder / SINGLE_FILE]
    found = sorted(file.name for file in folder.glob("*") if file.suffix in (".bin", ".pth", ".gguf"))
    raise CheckpointError(
        f"{folder} has no weights (no {SINGLE_FILE} or {INDEX_FILE}"
        + (f"; {found[0]} is in a format that is not read)" if found else ")"),
        "Point to a folder in Hugging Face layout with safetensors weights.",
    )


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
