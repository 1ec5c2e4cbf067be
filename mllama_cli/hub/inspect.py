"""Summarise a checkpoint from its configs and the headers of its weight files."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.contents import read_contents
from mllama_cli.checkpoint.files import weight_files
from mllama_cli.checkpoint.stored import Form
from mllama_cli.core.config import GenerationConfig, MllamaConfig, section
from mllama_cli.core.errors import CheckpointError
from mllama_cli.hub.kinds import kind
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json
from mllama_cli.system.text_file import read_text

BITS_IN_MEMORY = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
PARTS = ("text", "cross-attention", "vision", "projector")


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's contents.

    Attributes:
        parameters: their number, by part.
        stored: number of parameters, by format.
        size: of the weight files in bytes.
        packed: number of quantized matrices' parameters, by part and format.
        bytes_of: bytes, by part.
        forms: of the quantized matrices, by module.
        quantization: what config.json says of it, which the weights may not be.
    """

    path: Path
    kind: str
    config: MllamaConfig
    generation: GenerationConfig
    parameters: Mapping[str, int]
    stored: Mapping[str, int]
    size: int
    license: str
    packed: Mapping[str, Mapping[str, int]]
    bytes_of: Mapping[str, int]
    forms: Mapping[str, Form]
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    @property
    def bits_per_weight(self) -> float:
        """Return the average over all weights, including scales."""
        return 8 * sum(self.bytes_of.values()) / max(self.total, 1)

    def memory(self) -> dict[str, int]:
        """Return the bytes of all weights by format. int8 and int4 quantize only the language model."""
        linear = self.parameters["text"] + self.parameters["cross-attention"]
        rest = self.total - linear
        return {name: (linear * bits + rest * max(bits, 16)) // 8 for name, bits in BITS_IN_MEMORY.items()}


def inspect(folder: Path) -> Inspection:
    """Read the configs and headers of a checkpoint folder. Raise CheckpointError if they are damaged or missing."""
    raw = read_json(folder / "config.json")
    config = MllamaConfig.from_dict(raw)
    generation = folder / "generation_config.json"
    declared = section(raw, "quantization_config")
    contents = read_contents(folder, declared)
    parameters = dict.fromkeys(PARTS, 0)
    bytes_of = dict.fromkeys(PARTS, 0)
    packed: dict[str, dict[str, int]] = {part: {} for part in PARTS}
    stored: dict[str, int] = {}
    forms = {module: matrix.form for module, matrix in contents.matrices()}
    for name, tensor in contents.tensors.items():
        part = _part(name, config)
        bytes_of[part] += tensor.nbytes
        module, _, end = name.rpartition(".")
        form = contents.packed.get(module) if end.startswith("weight") else None
        if form is not None and end != "weight_packed":
            continue  # scales and shapes are not parameters
        if form is None and end == "weight":
            form = forms.get(module)
        count, format_ = tensor.info.elements, tensor.info.dtype
        if form is not None:
            count, format_ = math.prod(form.shape), form.label.upper() if form.ours else form.label
            packed[part][form.label] = packed[part].get(form.label, 0) + count
        parameters[part] += count
        stored[format_] = stored.get(format_, 0) + count
    return Inspection(
        path=folder,
        kind=kind(folder),
        config=config,
        generation=GenerationConfig.from_dict(read_json(generation) if is_file(generation) else {}),
        parameters=parameters,
        stored=stored,
        size=sum(file.stat().st_size for file in weight_files(folder)),
        license=_license(folder),
        packed=packed,
        bytes_of=bytes_of,
        forms={**contents.packed, **forms},
        quantization=declared,
    )


def _part(name: str, config: MllamaConfig) -> str:
    if name.startswith("model.vision_model."):
        return "vision"
    if name.startswith("model.multi_modal_projector."):
        return "projector"
    layer = name.partition(".layers.")[2].partition(".")[0]
    crossing = map(str, config.text_config.cross_attention_layers)  # texts, since int() refuses thousands of digits
    return "cross-attention" if layer in crossing else "text"


def _license(folder: Path) -> str:
    """Return the first line of the licence file, else the licence in the model card's header, else an empty text."""
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if lines := _text(folder / name).splitlines():
            return next((line.strip() for line in lines if line.strip()), "")
    return _license_of_card(folder / "README.md")


def _license_of_card(card: Path) -> str:
    header = re.match(r"---\n(.*?)\n---\n", _text(card), re.DOTALL)
    found = re.search(r"^license: *(\S.*)$", header[1], re.MULTILINE) if header else None
    return found[1] if found else ""


def _text(path: Path) -> str:
    try:
        return read_text(path, error=CheckpointError, pipes=False, errors="replace")
    except CheckpointError:
        return ""
