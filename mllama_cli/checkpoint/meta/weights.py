"""The weights in Meta's files by our names, each readable in slices as our checkpoints have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mllama_cli.checkpoint.header import TensorInfo
from mllama_cli.checkpoint.meta.names import DERIVED, EXTRA_TOKENS, TABLES, TOKENS, meta_names
from mllama_cli.checkpoint.meta.pickled import PickledTensor, read_pickled
from mllama_cli.checkpoint.names import hub_name
from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.stored import DecodedTensor, ReadBytes
from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown

_MISMATCH = "params.json and the weight files do not belong together, or one is damaged."


@dataclass(frozen=True)
class Joined:
    """A tensor of Meta's: its parts in the shards, cut along ``axis``; None where each shard has the whole."""

    parts: tuple[PickledTensor, ...]
    axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.parts[0].shape)
        if self.axis is not None:
            shape[self.axis] *= len(self.parts)
        return tuple(shape)

    @property
    def nbytes(self) -> int:
        return self.parts[0].nbytes * (1 if self.axis is None else len(self.parts))

    def rows(self, read: ReadBytes, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of the whole tensor; a scalar counts as one row."""
        if self.axis is None:
            return _rows(self.parts[0], read, start, stop)
        if self.axis == 1:
            return torch.cat([_rows(part, read, start, stop) for part in self.parts], 1)
        size, found = self.parts[0].shape[0], []
        for index, part in enumerate(self.parts):
            first, last = max(start - index * size, 0), min(stop - index * size, size)
            if first < last:
                found.append(_rows(part, read, first, last))
        return torch.cat(found)


def _rows(part: PickledTensor, read: ReadBytes, start: int, stop: int) -> Tensor:
    data = read(part.file, part.start + start * part.row_bytes, (stop - start) * part.row_bytes)
    dtype = torch_dtype(TensorInfo(part.dtype, part.shape, 0, 0))
    return data.view(dtype).view(stop - start, *part.shape[1:])


@dataclass(frozen=True)
class MetaWeight(DecodedTensor):
    """One weight: ``info`` has the dtype and shape that it gets.

    Attributes:
        whole: the tensor that it is made of.
        more: further rows.
        heads: of self-attention queries or keys, whose rotary pairs are neighbours in Meta's rows; else 0.
        ratios: of a table by row and column of a tile, the aspect ratios for which ours has a row each.
    """

    whole: Joined
    more: Joined | None = None
    heads: int = 0
    ratios: tuple[tuple[int, int], ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(part.file for part in self.whole.parts)

    def rows(self, read: ReadBytes, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) as our checkpoints have them. Raise CheckpointError."""
        shape = self.info.shape
        if self.ratios:
            return self._by_ratio(read)[start:stop]
        if self.heads:  # whole heads
            size = shape[0] // self.heads
            first, last = start // size * size, -(-stop // size) * size
            values = self.whole.rows(read, first, last).unflatten(0, (-1, size // 2, 2))
            in_order: Tensor = values.transpose(1, 2).flatten(0, 2)
            return in_order[start - first : stop - first]
        count = self.whole.shape[0] if self.whole.shape else 1
        found = [self.whole.rows(read, start, min(stop, count))] if start < count else []
        if self.more is not None and stop > count:
            found.append(self.more.rows(read, max(start - count, 0), stop - count))
        return torch.cat(found).view(stop - start, *shape[1:])

    def _by_ratio(self, read: ReadBytes) -> Tensor:
        """Return a table [tiles, tiles, ...] as [ratios + 1, tiles * ...], with zeros where a ratio has no tile."""
        table = self.whole.rows(read, 0, self.whole.shape[0])
        out = torch.zeros(len(self.ratios) + 1, len(table), *table.shape[2:], dtype=table.dtype)
        for number, (high, wide) in enumerate(self.ratios, start=1):
            out[number, : high * wide] = table[:high, :wide].flatten(0, 1)
        return out.flatten(1)


def read_shards(files: Sequence[Path]) -> list[dict[str, PickledTensor]]:
    """Return the tensors of each shard, in order. Raise CheckpointError for a damaged file."""
    return [read_pickled(file) for file in files]


def meta_weights(
    shards: Sequence[Mapping[str, PickledTensor]], expected: Mapping[str, torch.Size], config: MllamaConfig
) -> dict[str, MetaWeight]:
    """Return the weights by our names; ``expected`` are the shapes of the network.

    Where a tensor is cut is seen from its shapes. Raises CheckpointError unless the files hold exactly these weights.
    """
    names = meta_names(config)
    wanted = {*names.values(), EXTRA_TOKENS}
    for shard in shards:
        folder = next(iter(shard.values())).file if shard else "A weight file"
        missing, unknown = sorted(wanted - shard.keys()), sorted(shard.keys() - wanted - {*DERIVED})
        for problem, found in (("lacks weights", missing), ("has unknown weights", unknown)):
            if found:
                raise CheckpointError(
                    f"{folder} {problem}: {', '.join(shown(name)[1:-1] for name in found[:3])}"
                    + (f" and {len(found) - 3} more" * (len(found) > 3)),
                    _MISMATCH,
                )
    return {name: _weight(name, names[name], tuple(shape), shards, config) for name, shape in expected.items()}


def _weight(
    name: str,
    theirs: str,
    shape: tuple[int, ...],
    shards: Sequence[Mapping[str, PickledTensor]],
    config: MllamaConfig,
) -> MetaWeight:
    more, heads, stored = None, 0, shape
    ratios: tuple[tuple[int, int], ...] = ()
    vision, text = config.vision_config, config.text_config
    assert vision is not None
    if theirs == TOKENS:
        stored = (text.vocab_size, *shape[1:])
        more = joined(EXTRA_TOKENS, (shape[0] - text.vocab_size, *shape[1:]), shards)
    elif theirs in TABLES:
        ratios, tiles = vision.supported_aspect_ratios, vision.max_num_tiles
        width = vision.hidden_size
        stored = (tiles, tiles, shape[1] // tiles // width, width)
    elif ".self_attn." in name and name.startswith("model.language_model."):
        counts = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
        heads = counts.get(name.split(".")[-2], 0)
    elif len(shape) == 4:
        stored = (shape[0], shape[1] * shape[2] * shape[3])
    whole = joined(theirs, stored, shards)
    first = whole.parts[0]
    nbytes = whole.nbytes + (more.nbytes if more is not None else 0)
    info = TensorInfo(first.dtype, shape, first.start, first.start + nbytes)
    return MetaWeight(first.file, hub_name(name), info, whole, more, heads, ratios)


def joined(name: str, shape: tuple[int, ...], shards: Sequence[Mapping[str, PickledTensor]]) -> Joined:
    """Return a tensor of this shape from its parts. Raise CheckpointError if they do not make it."""
    parts = tuple(shard[name] for shard in shards)
    first, count = parts[0], len(parts)
    if shape == (1,) and len(first.shape) < 2:  # a gate, which may be there once for each channel
        return Joined((first,), None)
    if len({(part.shape, part.dtype) for part in parts}) == 1:
        if first.shape == shape:
            return Joined(parts, None)
        for axis in range(min(len(shape), 2)):
            if Joined(parts, axis).shape == shape and len(first.shape) == len(shape):
                return Joined(parts, axis)
    raise CheckpointError(
        f"{first.file}: {shown(name)[1:-1]} has shape {shown(list(first.shape))} in {count} "
        f"file{'s' * (count > 1)}, params.json asks for {list(shape)}",
        _MISMATCH,
    )
