"""What a checkpoint holds, read from its configs and the headers of its weight files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.catalog import kind
from mllama_cli.checkpoint.names import canonical
from mllama_cli.checkpoint.safetensors_header import read_header
from mllama_cli.checkpoint.weight_files import weight_files
from mllama_cli.core.config import GenerationConfig, MllamaConfig
from mllama_cli.core.json_file import read_json

BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
PARTS = ("text", "cross-attention", "vision", "projector")


@dataclass(frozen=True)
class Inspection:
    """``parameters`` by part, ``stored`` parameters by dtype, ``size`` of the weight files in bytes."""

    path: Path
    kind: str
    config: MllamaConfig
    generation: GenerationConfig
    parameters: Mapping[str, int]
    stored: Mapping[str, int]
    size: int
    license: str
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def memory(self) -> dict[str, int]:
        """Bytes that all weights take in each format. int8 and int4 keep 16 bits for all but the language model."""
        linear = self.parameters["text"] + self.parameters["cross-attention"]
        rest = self.total - linear
        return {
            name: int(linear * size + rest * max(size, 2.0 if name.startswith("int") else size))
            for name, size in BYTES.items()
        }


def inspect(folder: Path) -> Inspection:
    """Read the configs and headers of a checkpoint folder. CheckpointError where they are damaged or not all there."""
    raw = read_json(folder / "config.json")
    config = MllamaConfig.from_dict(raw)
    generation = folder / "generation_config.json"
    parameters = dict.fromkeys(PARTS, 0)
    stored: dict[str, int] = {}
    size = 0
    for file in weight_files(folder):
        size += file.stat().st_size
        for name, info in read_header(file).items():
            parameters[_part(canonical(name), config)] += info.elements
            stored[info.dtype] = stored.get(info.dtype, 0) + info.elements
    return Inspection(
        path=folder,
        kind=kind(folder),
        config=config,
        generation=GenerationConfig.from_dict(read_json(generation) if generation.is_file() else {}),
        parameters=parameters,
        stored=stored,
        size=size,
        license=_license(folder),
        quantization=raw.get("quantization_config") or {},
    )


def _part(name: str, config: MllamaConfig) -> str:
    if name.startswith("model.vision_model."):
        return "vision"
    if name.startswith("model.multi_modal_projector."):
        return "projector"
    layer = name.partition(".layers.")[2].partition(".")[0]
    return (
        "cross-attention" if layer.isdecimal() and int(layer) in config.text_config.cross_attention_layers else "text"
    )


def _license(folder: Path) -> str:
    """The first line of the licence file, else what the model card's header says, else nothing."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), "")
    return _license_of_card(folder / "README.md")


def _license_of_card(card: Path) -> str:
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8", errors="replace")
    header = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    found = re.search(r"^license: *(\S.*)$", header[1], re.MULTILINE) if header else None
    return found[1] if found else ""
