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

from mllama_cli.sketch.dataset import Shard, render_shard


class Feed:
    """Shards of samples, newer and less used ones first. ``batch`` never waits once the first shards are there.

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

    def batch(self, shards: int, per_group: int) -> "Batch":
        """All pictures of ``shards`` shards, with ``per_group`` samples of each group."""
        for _ in range(shards):
            if not self._collect():
                break
        candidates = self._random.sample(self._shards, min(len(self._shards), 4 * shards))
        chosen = sorted(candidates, key=lambda held: held.uses)[:shards]
        for held in chosen:
            held.uses += 1
        parts = [(held.shard, held.tiles, pick(held.shard, per_group, self._random)) for held in chosen]
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


def pick(shard: Shard, per_group: int, rng: random.Random) -> NDArray[np.int64]:
    """Which samples of a shard to take: at most ``per_group`` of those about the same pictures."""
    order = np.array(rng.sample(range(len(shard)), len(shard)))
    # Samples without pictures have an empty range; each is a group of its own.
    key = np.where(shard.image_range[:, 1] > 0, shard.image_range[:, 0], -1 - np.arange(len(shard)))[order]
    ranked = np.argsort(key, kind="stable")
    first = np.r_[True, key[ranked][1:] != key[ranked][:-1]]
    place = np.arange(len(order)) - np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    return np.sort(order[ranked[place < per_group]])


@dataclass(frozen=True)
class Batch:
    """Samples about pictures, on the training device.

    Attributes:
        tiles: [tiles, side, side, 3] uint8.
        tile_start, tile_count, aspect_ratio_id: [images].
        image_first, image_count: [samples]; a sample's pictures are neighbours.
        ids: [samples, length], padded at the end; answer: bool [samples, length], true where the id is an answer's.
        length: [samples].
        task: [samples].
    """

    tiles: Tensor
    tile_start: Tensor
    tile_count: Tensor
    aspect_ratio_id: Tensor
    image_first: Tensor
    image_count: Tensor
    ids: Tensor
    answer: Tensor
    length: NDArray[np.int64]
    task: NDArray[np.uint8]


def assemble(parts: Sequence[tuple[Shard, Tensor, NDArray[np.int64]]], device: torch.device) -> Batch:
    """Join the chosen samples of some shards. The pictures of samples that were not chosen come along."""
    tiles, starts, counts, ratios, firsts, numbers, tasks = [], [], [], [], [], [], []
    texts: list[tuple[NDArray[np.uint16], NDArray[np.bool_]]] = []
    tile_offset = image_offset = 0
    for shard, on_device, chosen in parts:
        tiles.append(on_device)
        starts.append(shard.tile_start[:-1] + tile_offset)
        counts.append(np.diff(shard.tile_start))
        ratios.append(shard.aspect_ratio_id)
        firsts.append(shard.image_range[chosen, 0] + image_offset)
        numbers.append(shard.image_range[chosen, 1])
        tasks.append(shard.task[chosen])
        for sample in chosen:
            piece = slice(shard.id_start[sample], shard.id_start[sample + 1])
            texts.append((shard.ids[piece], shard.answer[piece]))
        tile_offset += len(on_device)
        image_offset += len(shard.aspect_ratio_id)
    length = np.array([len(ids) for ids, _ in texts])
    ids = np.zeros((len(texts), int(length.max())), dtype=np.int64)
    answer = np.zeros(ids.shape, dtype=np.bool_)
    for row, (text, said) in enumerate(texts):
        ids[row, : len(text)] = text
        answer[row, : len(text)] = said

    def send(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype, non_blocking=True)

    return Batch(
        tiles=torch.cat(tiles),
        tile_start=send(np.concatenate(starts), torch.long),
        tile_count=send(np.concatenate(counts), torch.long),
        aspect_ratio_id=send(np.concatenate(ratios), torch.long),
        image_first=send(np.concatenate(firsts), torch.long),
        image_count=send(np.concatenate(numbers), torch.long),
        ids=send(ids, torch.long),
        answer=send(answer, torch.bool),
        length=length,
        task=np.concatenate(tasks),
    )
