"""Training batches: rendered by worker processes ahead of the GPU, kept, and drawn from again and again."""

import multiprocessing
import os
import queue
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mllama_cli.sketch.dataset import MAX_TILES, Shard, render_shard
from mllama_cli.sketch.vocabulary import VOCABULARY_SIZE

PICTURES = 2
"""Pictures that a sample has at most."""


class Feed:
    """Shards of samples, those used least first. ``batch`` never waits once the first shards are there.

    Rendering is what a training run is short of, so a shard serves several times, each time with other questions of
    each group.
    """

    def __init__(
        self,
        tokenizer_folder: Path,
        *,
        first_seed: int,
        workers: int,
        tile_size: int,
        groups: int,
        group_size: int,
        device: torch.device,
        keep: int,
        fonts_dir: str | None = None,
    ) -> None:
        self.next_seed = first_seed
        self.rendered = 0
        self._shards: list[_Held] = []
        self._keep = keep
        self._device = device
        self._random = random.Random(first_seed)
        # Tiles travel in files in memory: unpickling them would hold up the thread that feeds the GPU.
        memory = Path("/dev/shm")
        self._folder = tempfile.mkdtemp(prefix="mllama-sketch-", dir=memory if memory.is_dir() else None)
        # Started before CUDA is touched: a forked process must not inherit a CUDA context.
        context: Any = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
        self._queue = context.Queue(maxsize=2 * workers)
        self._seeds = context.Value("q", first_seed)
        arguments = (
            self._seeds, self._queue, self._folder, str(tokenizer_folder), tile_size, groups, group_size, fonts_dir
        )  # fmt: skip
        self._workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def wait(self, shards: int) -> None:
        """Until at least this many shards are there."""
        while len(self._shards) < shards:
            if not any(worker.is_alive() for worker in self._workers):
                raise RuntimeError("every rendering process has ended")
            self._collect(block=1.0)

    def batch(self, shards: int, length: int) -> "Batch":
        """All pictures of ``shards`` shards, each with as many questions as fill a row of ``length`` tokens."""
        for _ in range(shards):
            if not self._collect():
                break
        candidates = self._random.sample(self._shards, min(len(self._shards), 4 * shards))
        chosen = sorted(candidates, key=lambda held: held.uses)[:shards]
        for held in chosen:
            held.uses += 1
        parts = [(held.shard, held.tiles, pack_rows(held.shard, length, self._random)) for held in chosen]
        return assemble(parts, self._device)

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _collect(self, block: float = 0.0) -> bool:
        try:
            shard, path = self._queue.get(timeout=block) if block else self._queue.get_nowait()
        except queue.Empty:
            return False
        tiles = torch.from_numpy(np.load(path, mmap_mode="c")).to(self._device, copy=True)
        Path(path).unlink()
        self._shards.append(_Held(shard, tiles))
        self.rendered += len(np.unique(shard.image_range[:, 0]))
        self.next_seed = int(self._seeds.value)
        if len(self._shards) > self._keep:
            del self._shards[0]
        return True


@dataclass
class _Held:
    shard: Shard
    tiles: Tensor
    uses: int = 0


def _work(
    seeds: Any, out: Any, folder: str, tokenizer_folder: str, tile: int, groups: int, size: int, fonts: str | None
) -> None:
    torch.set_num_threads(1)
    while True:
        with seeds.get_lock():
            seed = seeds.value
            seeds.value += groups
        shard = render_shard(seed, groups, tokenizer_folder, tile_size=tile, group_size=size, fonts_dir=fonts)
        path = f"{folder}/{seed}.npy"
        np.save(path, shard.tiles)
        out.put((replace(shard, tiles=shard.tiles[:0]), path))


@dataclass(frozen=True)
class Rows:
    """Samples about the same pictures, one after the other in a row of fixed length. All arrays [rows, length] but two.

    Attributes:
        ids: token ids; answer: whether the id is part of an answer.
        sample: the sample's place in its shard, -1 for padding; position: the token's place in its own sample.
        newest: the last picture before the token, counted within its sample; -1 before the first.
        pictures: [rows, PICTURES] places of the pictures in the shard; -1 for none.
    """

    ids: NDArray[np.int64]
    answer: NDArray[np.bool_]
    sample: NDArray[np.int64]
    position: NDArray[np.int64]
    newest: NDArray[np.int64]
    pictures: NDArray[np.int64]


def pack_rows(shard: Shard, length: int, rng: random.Random | None = None) -> Rows:
    """One row for each group of samples about the same pictures, filled in random order with those that fit.

    Without ``rng`` the rows hold every sample that fits at all: evaluation leaves none out.
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
            place = (number, slice(start, start + sizes[sample]))
            result.ids[place] = shard.ids[stored]
            result.answer[place] = shard.answer[stored]
            result.sample[place] = sample
            result.position[place] = np.arange(sizes[sample])
            if count:
                result.newest[place] = np.cumsum(shard.ids[stored] == VOCABULARY_SIZE) - 1
            start += int(sizes[sample])
    return result


@dataclass(frozen=True)
class Batch:
    """Packed rows and their pictures, on the training device.

    Attributes:
        tiles: [tiles, side, side, 3] uint8, of all pictures.
        tile_index: [pictures, MAX_TILES], each picture's tiles; -1 for unused ones.
        aspect_ratio_id: [pictures].
        ids, sample, position, newest: [rows, length] as in ``Rows``; samples are numbered through.
        answer: bool [rows, length].
        pictures: [rows, PICTURES], -1 for none.
        task: [samples], each sample's task, on the host.
    """

    tiles: Tensor
    tile_index: Tensor
    aspect_ratio_id: Tensor
    ids: Tensor
    answer: Tensor
    sample: Tensor
    position: Tensor
    newest: Tensor
    pictures: Tensor
    task: NDArray[np.uint8]


def assemble(parts: Sequence[tuple[Shard, Tensor, Rows]], device: torch.device) -> Batch:
    """Join the rows of some shards, whose tiles are on the device already."""
    index, ratios, joined, tasks = [], [], [], []
    tiles = images = samples = 0
    for shard, on_device, rows in parts:
        starts, counts = shard.tile_start[:-1, None], np.diff(shard.tile_start)[:, None]
        slots = np.arange(MAX_TILES)[None]
        index.append(np.where(slots < counts, starts + slots + tiles, -1))
        ratios.append(shard.aspect_ratio_id)
        joined.append(
            replace(
                rows,
                sample=np.where(rows.sample >= 0, rows.sample + samples, -1),
                pictures=np.where(rows.pictures >= 0, rows.pictures + images, -1),
            )
        )
        tasks.append(shard.task)
        tiles, images, samples = tiles + len(on_device), images + len(shard.aspect_ratio_id), samples + len(shard)

    def send(arrays: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(device, non_blocking=True)

    return Batch(
        tiles=torch.cat([on_device for _, on_device, _ in parts]),
        tile_index=send(index).long(),
        aspect_ratio_id=send(ratios).long(),
        ids=send([rows.ids for rows in joined]),
        answer=send([rows.answer for rows in joined]),
        sample=send([rows.sample for rows in joined]),
        position=send([rows.position for rows in joined]),
        newest=send([rows.newest for rows in joined]),
        pictures=send([rows.pictures for rows in joined]),
        task=np.concatenate(tasks),
    )
