"""Quantize a checkpoint slice by slice: memory holds a few slices, whatever the model's size."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mllama_cli.checkpoint.files import INDEX_FILE
from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.shard_writer import ShardWriter
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.errors import QuantizationError
from mllama_cli.core.events import Event, Notice, QuantizeProgress, QuantizeSummary, RoundingError
from mllama_cli.core.text import human_size
from mllama_cli.hub.plan import free_space, is_companion_file
from mllama_cli.quantization.destination import QuantizeDestination
from mllama_cli.quantization.journal import QuantizeJournal
from mllama_cli.quantization.plan import QuantizedShard, QuantizePlan, Unit
from mllama_cli.quantization.rounding import NotFiniteError, quantize_matrix
from mllama_cli.quantization.sensitivity import not_finite
from mllama_cli.system.interrupts import ThreadPool

SLICE_BYTES = 32 * 2**20
"""Bytes of the source to read at once."""

WORKING_MEMORY = 1_200_000_000
"""Peak memory of a run in bytes, torch included: 1.02 GB were measured at the full 11B shape."""

SYNC_BYTES = 4 * 2**20
"""Bytes after which finished units are synced to disk and noted in the journal."""

T = TypeVar("T")


def quantize(
    plan: QuantizePlan, folder: Path, *, device: torch.device | None = None, force: bool = False
) -> Iterator[Event]:
    """Write the quantized checkpoint; yield Notice, QuantizeProgress, and finally QuantizeSummary.

    ``folder`` appears complete at the end. However a run was stopped, it resumes when started again with the same plan,
    and gives the same bytes. Raises UsageError for a folder that exists (unless ``force`` and it holds a model),
    QuantizationError if the disk is too small or writing fails, CheckpointError for a damaged source.
    """
    started = time.monotonic()
    destination = QuantizeDestination(folder)
    destination.check(plan.source, force=force)
    _check_space(plan, destination)
    yield from map(Notice, plan.layers.notes)
    with destination.writing() as lock:
        journal = QuantizeJournal(destination.partial, plan.fingerprint(), lock)
        if journal.continues and journal.errors:
            yield Notice("Resuming an earlier run.")
        elif not journal.continues:
            destination.remove_others()
        done = 0
        total = plan.size_before
        for shard in plan.shards:
            for unit, part in _write_shard(shard, destination.partial, journal, plan, device or torch.device("cpu")):
                done += part
                yield QuantizeProgress(done, total, unit.name)
        _write_rest(plan, destination.partial)
        destination.appear()
    yield QuantizeSummary(
        folder=str(folder),
        size_before=total,
        size_after=plan.size_after,
        bits_per_weight=plan.bits_per_weight,
        errors=_errors(plan, journal.errors),
        seconds=time.monotonic() - started,
    )


def _check_space(plan: QuantizePlan, destination: QuantizeDestination) -> None:
    missing = plan.size_after - destination.used()
    free = free_space(destination.folder)
    if missing > free:
        raise QuantizationError(
            f"The disk of {destination.folder} has {human_size(free)} free, but this needs {human_size(missing)}",
            "Free some space (`mllama rm MODEL` frees a model's), or choose a DEST on another disk.",
        )


def _write_shard(
    shard: QuantizedShard, folder: Path, journal: QuantizeJournal, plan: QuantizePlan, device: torch.device
) -> Iterator[tuple[Unit, int]]:
    """Write the missing units of one file; yield units with the bytes of them that are done."""
    with ShardWriter(folder / shard.file, shard.specs) as writer:
        if writer.fresh:
            journal.forget({unit.name for unit in shard.units})
        todo = []
        for unit in shard.units:
            if unit.name in journal.errors:
                yield unit, unit.source.nbytes
            else:
                todo.append(unit)
        waiting = 0
        with SliceReader() as reader:
            work = _Work(writer, plan, device)
            for unit, start, rows in one_ahead(_slices(reader, todo)):
                try:
                    last = work.write(unit, start, rows)
                except NotFiniteError:
                    raise not_finite(unit.source.stored_name, unit.source.file.name) from None
                waiting += rows.nbytes
                if last:
                    journal.finished(unit.name, work.error, work.energy)
                    if waiting >= SYNC_BYTES:
                        waiting = 0
                        writer.sync()
                        journal.flush()
                count = len(rows) if rows.dim() else 1
                yield unit, _bytes_before(unit, start + count) - _bytes_before(unit, start)
        writer.sync()
        journal.flush()


class _Work:
    """Quantizes and writes units slice by slice. ``error`` and ``energy`` are sums over the current unit."""

    def __init__(self, writer: ShardWriter, plan: QuantizePlan, device: torch.device) -> None:
        self._writer, self._method, self._device = writer, plan.options.method, device
        self.error = self.energy = 0.0
        self._offsets = [0, 0]

    def write(self, unit: Unit, start: int, rows: Tensor) -> bool:
        """Write a unit's rows from ``start`` on; return whether they are the last. Raises NotFiniteError."""
        if start == 0:
            self.error = self.energy = 0.0
            self._offsets = [0, 0]
        if unit.scheme is None:
            if not bool(torch.isfinite(rows).all()):
                raise NotFiniteError
            self._offsets[0] = self._writer.write(unit.outputs[0].name, rows, self._offsets[0])
        else:
            packed, scale, shape = unit.outputs
            rounded = quantize_matrix(rows.to(self._device), unit.scheme, self._method)
            self._offsets = [
                self._writer.write(packed.name, rounded.weight.packed, self._offsets[0]),
                self._writer.write(scale.name, rounded.weight.scale, self._offsets[1]),
            ]
            self.error += rounded.error
            self.energy += rounded.energy
            if start == 0:
                self._writer.write(shape.name, torch.tensor(unit.source.info.shape))
        return not rows.dim() or start + len(rows) == unit.source.info.shape[0]


def _slices(reader: SliceReader, units: list[Unit]) -> Iterator[tuple[Unit, int, Tensor]]:
    for unit in units:
        rows = unit.source.info.shape[0] if unit.source.info.shape else 1
        dense = unit.source.info.elements * torch_dtype(unit.source.info).itemsize
        step = max(1, SLICE_BYTES * rows // max(dense, 1))
        for start in range(0, rows, step):
            yield unit, start, reader.rows(unit.source, start, start + step)


def _bytes_before(unit: Unit, row: int) -> int:
    """Return the bytes of a unit's file that its rows before ``row`` take, which are fewer than in memory if packed."""
    shape = unit.source.info.shape
    return unit.source.nbytes * row // (shape[0] if shape else 1)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, while another thread computes the next one."""
    with ThreadPool(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := pool.wait_for(coming)) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _write_rest(plan: QuantizePlan, folder: Path) -> None:
    """Copy tokenizer, template and settings, write the index, and finally config.json, which makes it a model."""
    for file in sorted(plan.source.iterdir()):
        if file.is_file() and is_companion_file(file.name) and file.name not in ("config.json", INDEX_FILE):
            shutil.copyfile(file, folder / file.name)
    if len(plan.shards) > 1:
        weight_map = {spec.name: shard.file for shard in plan.shards for spec in shard.specs}
        total = sum(unit.nbytes for unit in plan.units())
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", plan.config)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _errors(plan: QuantizePlan, sums: dict[str, tuple[float, float]]) -> tuple[RoundingError, ...]:
    by_bits: dict[int, dict[str, float]] = {}
    for name, scheme in plan.layers.schemes.items():
        error, energy = sums[name]
        by_bits.setdefault(scheme.bits, {})[name] = error / energy if energy else 0.0
    result = []
    for bits, found in sorted(by_bits.items()):
        worst = max(found, key=lambda name: found[name])
        result.append(RoundingError(bits, len(found), sum(found.values()) / len(found), found[worst], worst))
    return tuple(result)
