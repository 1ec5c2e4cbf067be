"""Training batches: rendered by worker processes ahead of the GPU, kept, and reused."""

import multiprocessing
import os
import queue
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mllama_cli.sketch.training.dataset import Shard, render_shard
from mllama_cli.sketch.training.packing import Batch, Sizes, assemble, pack_rows


class DataLoader:
    """Serve shards of samples, the least used first. ``batch`` never blocks once the first shards have arrived.

    Rendering is the bottleneck of a training run, so a shard is used several times, each time with other questions of
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
        forms: int,
        device: torch.device,
        keep: int,
        fonts_dir: str | None = None,
    ) -> None:
        self.next_seed = first_seed
        self.rendered = 0
        self._shards: list[_StoredShard] = []
        self._keep = keep
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._sizes: Sizes | None = None
        self._random = random.Random(first_seed)
        # Tiles are passed as files in memory: unpickling them would delay the thread that feeds the GPU.
        memory = Path("/dev/shm")
        self._folder = tempfile.mkdtemp(prefix="mllama-sketch-", dir=memory if memory.is_dir() else None)
        # Started before CUDA is touched: a forked process must not inherit a CUDA context.
        context: Any = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
        self._queue = context.Queue(maxsize=2 * workers)
        self._seeds = context.Value("q", first_seed)
        arguments = (
            self._seeds, self._queue, self._folder, str(tokenizer_folder), tile_size, groups, group_size, forms,
            fonts_dir,
        )  # fmt: skip
        self._workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def wait(self, shards: int) -> None:
        """Block until at least this many shards have arrived."""
        while len(self._shards) < shards:
            if not any(worker.is_alive() for worker in self._workers):
                raise RuntimeError("every rendering process has ended")
            self._collect(block=1.0)

    def batch(self, shards: int, length: int) -> Batch:
        """Return the images of about ``shards`` shards, each with as many questions as fill a row of ``length`` tokens.

        All batches but the first have the same shapes.
        """
        for _ in range(shards):
            if not self._collect():
                break
        shards += self._sizes is not None  # enough to fill a batch of fixed sizes
        candidates = self._random.sample(self._shards, min(len(self._shards), 4 * shards))
        chosen = sorted(candidates, key=lambda held: held.uses)[:shards]
        for held in chosen:
            held.uses += 1
        parts = [(held.shard, held.tiles, pack_rows(held.shard, length, self._random)) for held in chosen]
        batch = assemble(parts, self._device, self._sizes, self._random)
        if self._sizes is None:
            self._sizes = Sizes.like(batch)
        return batch

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _collect(self, block: float = 0.0) -> bool:
        try:
            shard, path = self._queue.get(timeout=block) if block else self._queue.get_nowait()
        except queue.Empty:
            return False
        tiles = self._upload(torch.from_numpy(np.load(path, mmap_mode="c")))
        Path(path).unlink()
        self._shards.append(_StoredShard(shard, tiles))
        self.rendered += len(np.unique(shard.image_range[:, 0]))
        self.next_seed = int(self._seeds.value)
        if len(self._shards) > self._keep:
            del self._shards[0]
        return True

    def _upload(self, tiles: Tensor) -> Tensor:
        """Copy to the GPU on a side stream, since on the training stream it would wait for the running step."""
        if self._device.type != "cuda":
            return tiles.clone()
        training = torch.cuda.current_stream(self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._stream):
            result = tiles.to(self._device, copy=True)
        training.wait_stream(self._stream)
        result.record_stream(training)
        return result


@dataclass
class _StoredShard:
    shard: Shard
    tiles: Tensor
    uses: int = 0


def _work(
    seeds: Any,
    out: Any,
    folder: str,
    tokenizer_folder: str,
    tile: int,
    groups: int,
    size: int,
    forms: int,
    fonts: str | None,
) -> None:
    torch.set_num_threads(1)
    while True:
        with seeds.get_lock():
            seed = seeds.value
            seeds.value += groups
        shard = render_shard(
            seed, groups, tokenizer_folder, tile_size=tile, group_size=size, forms=forms, fonts_dir=fonts
        )
        path = f"{folder}/{seed}.npy"
        np.save(path, shard.tiles)
        out.put((replace(shard, tiles=shard.tiles[:0]), path))
