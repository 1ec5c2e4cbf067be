"""Plan the quantization of a checkpoint: the tensors to write, in which files, with sizes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.adapters.merge import Adapters
from mllama_cli.checkpoint.files import INDEX_FILE, SINGLE_FILE
from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.shard_writer import TensorSpec, layout
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.checkpoint.writer import SHARD_BYTES
from mllama_cli.core.errors import UsageError
from mllama_cli.hub.plan import is_companion_file
from mllama_cli.quantization.config_groups import quantization_config
from mllama_cli.quantization.linear import linear_layers
from mllama_cli.quantization.opening import open_network
from mllama_cli.quantization.policy import LayerSchemes, QuantizeOptions, choose_schemes
from mllama_cli.quantization.rounding import Method
from mllama_cli.quantization.schemes import Scheme
from mllama_cli.quantization.sensitivity import ErrorProbe
from mllama_cli.system.json_file import read_json


@dataclass(frozen=True)
class Unit:
    """A stored tensor and its outputs: a linear layer's matrix packed, or the tensor unchanged.

    ``name`` is the linear layer's, or the tensor's own.
    """

    name: str
    source: StoredTensor
    scheme: Scheme | None
    outputs: tuple[TensorSpec, ...]

    @property
    def weight(self) -> str:
        """Return our name of the tensor."""
        return self.name if self.scheme is None else f"{self.name}.weight"

    @property
    def nbytes(self) -> int:
        """Return the bytes to write for it."""
        return sum(spec.nbytes for spec in self.outputs)


@dataclass(frozen=True)
class QuantizedShard:
    """One file to write."""

    file: str
    units: tuple[Unit, ...]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for unit in self.units for spec in unit.outputs)

    @property
    def nbytes(self) -> int:
        return len(layout(self.specs)[0]) + sum(unit.nbytes for unit in self.units)


@dataclass(frozen=True)
class QuantizePlan:
    """The files to write, and their ``config`` (config.json). Sizes are of the weights, in bytes.

    Attributes:
        sources: the folder of a checkpoint, or the files of a model in another format.
        companions: what the other files of the model hold, or the files to copy, by name.
        reading: how the sources are read, where there is a choice.
        adapters: what is merged into the weights first.
    """

    sources: tuple[Path, ...]
    method: Method
    layers: LayerSchemes
    shards: tuple[QuantizedShard, ...]
    config: dict[str, Any]
    companions: Mapping[str, bytes | Path]
    reading: str = ""
    adapters: Adapters = field(default_factory=Adapters)

    def units(self) -> Iterator[Unit]:
        return (unit for shard in self.shards for unit in shard.units)

    @property
    def size_before(self) -> int:
        return sum(unit.source.nbytes for unit in self.units())

    @property
    def size_after(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def bits_per_weight(self) -> float:
        weights = sum(unit.source.info.elements for unit in self.units())
        return 8 * sum(unit.nbytes for unit in self.units()) / weights

    def fingerprint(self) -> dict[str, Any]:
        """Return data that identify this plan and the files that it reads."""
        files = [*sorted({file for unit in self.units() for file in unit.source.files}), *self.adapters.files]
        return {
            "source": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
            "method": f"{self.method} {self.reading}".rstrip(),
            "shards": [[shard.file, layout(shard.specs)[0][8:].decode()] for shard in self.shards],
        }


def make_plan(
    source: Path, options: QuantizeOptions, *, adapters: Sequence[Path] = (), shard_bytes: int = SHARD_BYTES
) -> QuantizePlan:
    """Make a plan from a checkpoint's headers and, unless it is as deep as the 11B, samples of its weights.

    ``adapters`` are folders of LoRA adapters. Raises CheckpointError, or UsageError for a checkpoint that is quantized
    already and for patterns that fit nothing.
    """
    raw = read_json(source / "config.json")
    opened = open_network(source, raw)
    reader, config = opened.reader, opened.config
    refuse_quantized(reader)
    linears = {
        name: inputs for name, inputs in linear_layers(opened.network).items() if f"{name}.weight" in opened.expected
    }
    with SliceReader() as slices:
        layers = choose_schemes(
            linears, config.text_config, options, ErrorProbe(slices, reader.tensors, options.scheme)
        )
    companions = {
        file.name: file
        for file in source.iterdir()
        if file.is_file() and is_companion_file(file.name) and file.name not in ("config.json", INDEX_FILE)
    }
    shards = shards_of(reader.tensors, layers, shard_bytes)
    raw["quantization_config"] = quantization_config(layers.schemes, layers.kept)
    return QuantizePlan(
        (source,), options.method, layers, shards, raw, companions, adapters=Adapters(adapters, opened.expected)
    )


def refuse_quantized(reader: CheckpointReader) -> None:
    """Raise UsageError if weights are in our packed layout already."""
    if reader.contents.packed:
        raise UsageError(f"{reader.folder.name} is quantized already", "Quantize the model that it was made from.")


def _unit(name: str, stored: StoredTensor, scheme: Scheme | None) -> Unit:
    info = stored.info
    if scheme is None:
        return Unit(name, stored, None, (TensorSpec(stored.stored_name, info.dtype, info.shape),))
    rows, inputs = info.shape
    base = stored.stored_name.removesuffix("weight")
    outputs = (
        TensorSpec(f"{base}weight_packed", "I32", (rows, scheme.words(inputs))),
        TensorSpec(f"{base}weight_scale", info.dtype, (rows, scheme.groups(inputs))),
        TensorSpec(f"{base}weight_shape", "I64", (2,)),
    )
    return Unit(name.removesuffix(".weight"), stored, scheme, outputs)


def shards_of(
    tensors: Mapping[str, StoredTensor], layers: LayerSchemes, limit: int = SHARD_BYTES
) -> tuple[QuantizedShard, ...]:
    """Return the files to write for tensors, by our names, in the order in which their files hold them.

    Each has at most ``limit`` bytes, or one larger unit. A linear layer stays in one file.
    """
    in_order = sorted(tensors.items(), key=lambda item: (item[1].file, item[1].info.start))
    units = [_unit(name, stored, layers.schemes.get(name.removesuffix(".weight"))) for name, stored in in_order]
    bins: list[list[Unit]] = [[]]
    used = 0
    for unit in units:
        if bins[-1] and used + unit.nbytes > limit:
            bins.append([])
            used = 0
        bins[-1].append(unit)
        used += unit.nbytes
    if len(bins) == 1:
        return (QuantizedShard(SINGLE_FILE, tuple(bins[0])),)
    return tuple(
        QuantizedShard(f"model-{number:05d}-of-{len(bins):05d}.safetensors", tuple(inside))
        for number, inside in enumerate(bins, 1)
    )
