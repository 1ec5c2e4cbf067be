"""A checkpoint with random weights in the shape of a released model.

``python -m tests.benchmarks.random_checkpoint FOLDER --shape 11b|90b|8b-text [--form "nf4 double"|FP8_DYNAMIC|...]``.

For measuring memory and speed where no real weights are. Each tensor is drawn and written by slices: 11b takes 21 GB
of disk and little memory. Tokenizer, template and settings are copied from a folder that has them. ``--form`` has the
language model's matrices written as other tools do, by those tools (``tests.checkpoint.foreign.writers.FORMS``).
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mllama_cli.checkpoint.names import hub_name
from mllama_cli.checkpoint.shard_writer import ShardWriter, TensorSpec
from mllama_cli.core.config import MllamaConfig
from mllama_cli.hub.plan import is_companion_file
from mllama_cli.model.mllama import empty_network

ROOT = Path(__file__).parents[2]
SHARD = 5 * 10**9
ROWS = 1 << 23


def config_of(shape: str, base: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a shape, from 11B's."""
    config = {**base, "torch_dtype": "bfloat16"}
    if shape == "90b":
        text = {
            **base["text_config"],
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_attention_heads": 64,
            "num_hidden_layers": 100,
            "cross_attention_layers": list(range(3, 100, 5)),
        }
        return {**config, "text_config": text}
    if shape == "8b-text":
        text = {**base["text_config"], "num_hidden_layers": 32, "cross_attention_layers": []}
        return {**text, "architectures": ["MllamaForCausalLM"], "torch_dtype": "bfloat16"}
    return config


def write(folder: Path, config: dict[str, Any], files: Path, seed: int = 0, device: str = "cpu") -> None:
    """Weights, drawn on a device, with the size of a trained network's, bfloat16, in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    parsed = MllamaConfig.from_dict(config)
    shapes = {name: tuple(p.shape) for name, p in empty_network(parsed).named_parameters()}
    as_stored = hub_name if parsed.vision_config else str
    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if shards[-1] and used + size > SHARD:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with ShardWriter(folder / file, [TensorSpec(as_stored(n), "BF16", shapes[n]) for n in names]) as writer:
            for name in names:
                shape, offset = shapes[name], 0
                rows = max(1, ROWS // max(torch.Size(shape[1:]).numel(), 1))
                for start in range(0, shape[0], rows):
                    piece = torch.empty(min(rows, shape[0] - start), *shape[1:], dtype=torch.bfloat16, device=device)
                    offset = writer.write(as_stored(name), fill(name, piece).cpu(), offset)
        weight_map.update({as_stored(name): file for name in names})
    index = {"metadata": {"total_size": sum(2 * torch.Size(s).numel() for s in shapes.values())}}
    (folder / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": weight_map}))
    for beside in files.iterdir():
        if is_companion_file(beside.name) and beside.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(beside, folder / beside.name)
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def rewrite(folder: Path, form: str, device: str) -> None:
    """Rewrite the language model's matrices of a checkpoint in another tool's form, one file at a time."""
    from tests.checkpoint.foreign.writers import FORMS

    make, _ = FORMS[form]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        stored: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(folder / file).items():
            if name.startswith("language_model") and name.endswith("_proj.weight"):
                parts, _ = make(tensor.to(device).float())
                made = {name.removesuffix(".weight") + end: part.contiguous().cpu() for end, part in parts.items()}
            else:
                made = {name: tensor}
            stored |= made
            index["weight_map"] |= dict.fromkeys(made, file)
        save_file(stored, folder / file, {"format": "pt"})
    del index["metadata"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    method = "bitsandbytes" if "fp4" in form or "nf4" in form or form == "LLM.int8" else "compressed-tensors"
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": "4" in form}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def fill(name: str, piece: torch.Tensor) -> torch.Tensor:
    if "norm" in name and name.endswith("weight"):
        return piece.fill_(1)
    if "gate" in name.rpartition(".")[2]:
        return piece.fill_(0.5)
    if name.endswith("tile_embedding.weight") or "_tile_positional_embedding.embedding" in name:
        return piece.zero_()  # unused tiles must be equal, as in the released models
    return piece.normal_(0, 0.02)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=("11b", "90b", "8b-text"), default="11b")
    parser.add_argument("--files", type=Path, default=ROOT.parent / "shared" / "llama-3.2-11b-vision-instruct")
    parser.add_argument("--device", default="cpu", help="where the numbers are drawn: a GPU takes seconds for 11b")
    parser.add_argument("--form", help='such as "nf4 double": of the matrices of the language model')
    given = parser.parse_args()
    base = json.loads((given.files / "config.json").read_text())
    write(given.folder, config_of(given.shape, base), given.files, device=given.device)
    if given.form:
        rewrite(given.folder, given.form, given.device)
