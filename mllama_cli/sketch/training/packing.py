"""Batches of packed rows: samples about the same images share a row and attend only to themselves."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllama_cli.sketch.training.dataset import MAX_TILES, Shard
from mllama_cli.sketch.training.vocabulary import VOCABULARY_SIZE

PICTURES = 2
"""Maximum number of images in a sample."""


@dataclass(frozen=True)
class Rows:
    """Samples about the same images, concatenated in rows of fixed length. Arrays are [rows, length] but for the last.

    Attributes:
        ids: token ids; answer: whether the id is part of an answer.
        sample: the sample's index in its shard, -1 for padding; position: the token's index in its own sample.
        newest: the last image before the token, counted within its sample; -1 before the first.
        pictures: [rows, PICTURES] indices of the images in the shard; -1 for none.
    """

    ids: NDArray[np.int64]
    answer: NDArray[np.bool_]
    sample: NDArray[np.int64]
    position: NDArray[np.int64]
    newest: NDArray[np.int64]
    pictures: NDArray[np.int64]


def pack_rows(shard: Shard, length: int, rng: random.Random | None = None) -> Rows:
    """Fill one row for each group of samples about the same images, in random order, with those that fit.

    Without ``rng`` there are as many rows as it takes to hold every sample that fits at all, for evaluation.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for sample, (first, count) in enumerate(shard.image_range.tolist()):
        groups.setdefault((first if count else -1, count), []).append(sample)
    sizes = np.diff(shard.id_start)
    rows: list[tuple[tuple[int, int], list[int]]] = []
    for key, samples in groups.items():
        order = rng.sample(samples, len(samples)) if rng else samples
        row, used = [], 0
        for sample in order:
            if used + sizes[sample] <= length:
                row.append(sample)
                used += int(sizes[sample])
            elif rng is None and sizes[sample] <= length:
                rows.append((key, row))
                row, used = [sample], int(sizes[sample])
        rows.append((key, row))
    shape = (len(rows), length)
    result = Rows(
        ids=np.zeros(shape, np.int64),
        answer=np.zeros(shape, np.bool_),
        sample=np.full(shape, -1),
        position=np.zeros(shape, np.int64),
        newest=np.full(shape, -1),
        pictures=np.full((len(rows), PICTURES), -1),
    )
    for number, ((first, count), row) in enumerate(rows):
        result.pictures[number, :count] = np.arange(first, first + count)
        start = 0
        for sample in row:
            stored = slice(shard.id_start[sample], shard.id_start[sample + 1])
            span = (number, slice(start, start + sizes[sample]))
            result.ids[span] = shard.ids[stored]
            result.answer[span] = shard.answer[stored]
            result.sample[span] = sample
            result.position[span] = np.arange(sizes[sample])
            if count:
                result.newest[span] = np.cumsum(shard.ids[stored] == VOCABULARY_SIZE) - 1
            start += int(sizes[sample])
    return result


@dataclass(frozen=True)
class Sizes:
    """Fixed sizes of a batch, which a captured step needs: rows, and images with 1, 2, 3 and 4 tiles."""

    rows: int
    pictures: tuple[int, ...]

    @classmethod
    def like(cls, batch: "Batch") -> "Sizes":
        """Return sizes that nearly every batch drawn like ``batch`` fills; the rare surplus is dropped."""
        return cls(len(batch.ids), tuple(len(tiles) + math.isqrt(len(tiles)) + 1 for tiles in batch.tiles))


@dataclass(frozen=True)
class Batch:
    """Packed rows and their images, on the training device. Images are ordered by their number of tiles.

    Attributes:
        tiles: for each number n of tiles from 1: uint8 [images, n, side, side, 3].
        aspect_ratio_id: for each number of tiles: [images].
        ids, sample, position, newest: [rows, length] as in ``Rows``; samples are numbered over all shards.
        answer: bool [rows, length].
        pictures: [rows, PICTURES], indices in the joint order of all images; -1 for none.
        task: [samples], each sample's task, on the host.
    """

    tiles: tuple[Tensor, ...]
    aspect_ratio_id: tuple[Tensor, ...]
    ids: Tensor
    answer: Tensor
    sample: Tensor
    position: Tensor
    newest: Tensor
    pictures: Tensor
    task: NDArray[np.uint8]

    def tensors(self) -> list[Tensor]:
        """Return every tensor on the device, always in the same order."""
        rows = [self.ids, self.answer, self.sample, self.position, self.newest, self.pictures]
        return [*self.tiles, *self.aspect_ratio_id, *rows]

    def clone(self) -> "Batch":
        """Return a copy with memory of its own."""
        return replace(
            self,
            tiles=tuple(t.clone() for t in self.tiles),
            aspect_ratio_id=tuple(t.clone() for t in self.aspect_ratio_id),
            **{name: getattr(self, name).clone() for name in _ROWS},
        )


_ROWS = ("ids", "answer", "sample", "position", "newest", "pictures")


def assemble(
    parts: Sequence[tuple[Shard, Tensor, Rows]],
    device: torch.device,
    sizes: Sizes | None = None,
    rng: random.Random | None = None,
) -> Batch:
    """Join the rows of shards whose tiles [tiles, side, side, 3] are already on the device.

    With ``sizes`` rows are taken in random order while they and their images fit, then padded with rows and images
    that nothing attends to.
    """
    counts = [np.diff(shard.tile_start) for shard, _, _ in parts]
    offsets = np.cumsum([0, *(len(tiles) for _, tiles, _ in parts)])
    order = [(part, row) for part, (_, _, rows) in enumerate(parts) for row in range(len(rows.ids))]
    if rng is not None:
        rng.shuffle(order)
    # (number of tiles - 1, index among the images with as many tiles) of each image.
    slots: dict[tuple[int, int], tuple[int, int]] = {}
    held: list[list[tuple[int, int]]] = [[] for _ in range(MAX_TILES)]
    chosen: list[tuple[int, int]] = []
    for part, row in order:
        if sizes and len(chosen) == sizes.rows:
            break
        pictures = parts[part][2].pictures[row]
        new = [(part, int(p)) for p in pictures if p >= 0 and (part, int(p)) not in slots]
        wanted = Counter(int(counts[part][picture]) - 1 for _, picture in new)
        if sizes and any(len(held[n]) + more > sizes.pictures[n] for n, more in wanted.items()):
            continue
        for key in new:
            n = int(counts[part][key[1]]) - 1
            slots[key] = n, len(held[n])
            held[n].append(key)
        chosen.append((part, row))

    room = sizes.pictures if sizes else tuple(map(len, held))
    first_index = np.cumsum([0, *room])
    samples = np.cumsum([0, *(len(shard) for shard, _, _ in parts)])
    length = parts[0][2].ids.shape[1]
    n_rows = sizes.rows if sizes else len(chosen)
    rows: dict[str, NDArray[Any]] = {
        "ids": np.zeros((n_rows, length), np.int64),
        "answer": np.zeros((n_rows, length), np.bool_),
        "sample": np.full((n_rows, length), -1),
        "position": np.zeros((n_rows, length), np.int64),
        "newest": np.full((n_rows, length), -1),
        "pictures": np.full((n_rows, PICTURES), -1),
    }
    for number, (part, row) in enumerate(chosen):
        source = parts[part][2]
        for name in ("ids", "answer", "position", "newest"):
            rows[name][number] = getattr(source, name)[row]
        rows["sample"][number] = np.where(source.sample[row] >= 0, source.sample[row] + samples[part], -1)
        for slot, picture in enumerate(source.pictures[row]):
            if picture >= 0:
                n, index = slots[part, int(picture)]
                rows["pictures"][number, slot] = first_index[n] + index

    def send(array: NDArray[Any]) -> Tensor:
        # Pinned, so that the copy does not wait for the step that is still running.
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()

    joined = torch.cat([tiles for _, tiles, _ in parts])
    tiles, ratios = [], []
    for n in range(MAX_TILES):
        tile_indices = np.zeros((room[n], n + 1), np.int64)
        ratio = np.ones(room[n], np.int64)
        for index, (part, picture) in enumerate(held[n]):
            shard = parts[part][0]
            tile_indices[index] = offsets[part] + shard.tile_start[picture] + np.arange(n + 1)
            ratio[index] = shard.aspect_ratio_id[picture]
        at = send(tile_indices)
        tiles.append(joined[at] if len(joined) else joined.new_zeros((room[n], n + 1, *joined.shape[1:])))
        ratios.append(send(ratio))
    return Batch(
        tiles=tuple(tiles),
        aspect_ratio_id=tuple(ratios),
        **{name: send(array) for name, array in rows.items()},
        task=np.concatenate([shard.task for shard, _, _ in parts]),
    )
