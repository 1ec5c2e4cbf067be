"""Write a checkpoint folder in the Hub's layout."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mllama_cli.checkpoint.names import hub_name
from mllama_cli.system.safe_files import replacing, temporary_path

SHARD_BYTES = 5 * 10**9


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights (by our names) and config.json. Large checkpoints are split into shards with an index.

    Each file is written atomically, the index or the single weight file last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", json.dumps(config, indent=2) + "\n")
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][hub_name(name)] = tensor.detach().contiguous()
        used += tensor.nbytes
    if len(shards) == 1:
        _save(folder / "model.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(folder / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    temporary = Path(temporary_path(str(path.parent), secrets.token_hex(8)))  # safetensors opens files by name
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with replacing(str(path)) as file:
        file.write(text.encode())
