"""Summarise a checkpoint from its configs and the headers of its weight files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.files import weight_files
from mllama_cli.checkpoint.header import TensorInfo, read_header
from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.config import GenerationConfig, MllamaConfig, section
from mllama_cli.core.errors import CheckpointError
from mllama_cli.hub.catalog import kind
from mllama_cli.system.files import is_file
from mllama_cli.system.json_file import read_json
from mllama_cli.system.text_file import read_text

BITS_IN_MEMORY = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
_PACKED_SUFFIX, _SHAPE_SUFFIX = ".weight_packed", ".weight_shape"  # of compressed-tensors
PARTS = ("text", "cross-attention", "vision", "projector")


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's contents.

    Attributes:
        parameters: their number, by part.
        stored: number of parameters, by format.
        size: of the weight files in bytes.
        packed: number of quantized matrices' parameters, by part and bits.
        bytes_of: bytes, by part.
    """

    path: Path
    kind: str
    config: MllamaConfig
    generation: GenerationConfig
    parameters: Mapping[str, int]
    stored: Mapping[str, int]
    size: int
    license: str
    packed: Mapping[str, Mapping[int, int]]
    bytes_of: Mapping[str, int]
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
    parameters = dict.fromkeys(PARTS, 0)
    bytes_of = dict.fromkeys(PARTS, 0)
    packed: dict[str, dict[int, int]] = {part: {} for part in PARTS}
    stored: dict[str, int] = {}
    size = 0
    for file in weight_files(folder):
        size += file.stat().st_size
        header = read_header(file)
        matrices = _packed_matrices(file, header)
        for name, info in header.items():
            part = _part(canonical(name), config)
            bytes_of[part] += info.nbytes
            count, form = info.elements, info.dtype
            if (module := name.rpartition(".")[0]) in matrices and name != f"{module}.bias":
                if not name.endswith(_PACKED_SUFFIX):
                    continue  # scales and shapes are not parameters
                count, bits = matrices[module]
                form = f"INT{bits}"
                packed[part][bits] = packed[part].get(bits, 0) + count
            parameters[part] += count
            stored[form] = stored.get(form, 0) + count
    return Inspection(
        path=folder,
        kind=kind(folder),
        config=config,
        generation=GenerationConfig.from_dict(read_json(generation) if is_file(generation) else {}),
        parameters=parameters,
        stored=stored,
        size=size,
        license=_license(folder),
        packed=packed,
        bytes_of=bytes_of,
        quantization=section(raw, "quantization_config"),
    )


def _packed_matrices(file: Path, header: dict[str, TensorInfo]) -> dict[str, tuple[int, int]]:
    """Return (number of weights, bits) by module, from the stored shape of each packed matrix."""
    found = {}
    with file.open("rb") as opened:
        for name, info in header.items():
            module = name.removesuffix(_PACKED_SUFFIX)
            shape = header.get(module + _SHAPE_SUFFIX)
            if module == name or shape is None or shape.shape != (2,) or len(info.shape) != 2:
                continue
            if shape.nbytes > 16:  # of a format that we do not know, whose bytes may not fit its shape
                continue
            opened.seek(shape.start)
            data = opened.read(shape.nbytes)
            half = shape.nbytes // 2
            rows, inputs = int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little")
            if rows != info.shape[0] or not 0 < inputs <= 32 * info.shape[1]:
                raise CheckpointError(
                    f"{file}: {module}{_SHAPE_SUFFIX} says [{rows}, {inputs}], "
                    f"which {list(info.shape)} words do not hold",
                    "Download or copy the file again, or quantize the model again.",
                )
            found[module] = (rows * inputs, 32 * info.shape[1] // inputs)
    return found


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
