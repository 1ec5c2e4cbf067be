"""Merge adapters into the weights of a model, row by row, in float32, or keep their products apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.checkpoint.adapters.adapter import WEIGHTS_FILE, Adapter, Change
from mllama_cli.checkpoint.files import ADAPTER_CONFIG
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError

_BLOCK_ELEMENTS = 1 << 24
"""Weights whose float32 copies are in memory at once."""


class Adapters:
    """Adapters that are merged one after the other into the weights of one model.

    ``shapes`` are the dense shapes of its weights by our names. Raises CheckpointError for an adapter that is damaged
    or does not fit.
    """

    def __init__(self, folders: Sequence[Path] = (), shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.folders = tuple(folders)
        self._changes: dict[str, list[Change]] = {}
        for adapter in map(Adapter, folders):
            for name, change in adapter.fitted(shapes or {}).items():
                self._changes.setdefault(name, []).append(change)

    def __contains__(self, name: str) -> bool:
        """Return whether any adapter changes a weight, by our name of it."""
        return name in self._changes

    def rank(self, name: str) -> int:
        """Return the rank of a weight's change if it is a sum of products of low rank and nothing else, otherwise 0."""
        found = [change.low_rank for change in self._changes.get(name, ()) if change.is_low_rank]
        return sum(each.rank for each in found if each) if len(found) == len(self._changes.get(name, ())) else 0

    def factors(self, name: str, outputs: int) -> tuple[Tensor, Tensor]:
        """Return A [rank, in] and B [outputs, rank] whose product ``rank`` describes, scaled, in float32.

        Raises CheckpointError for NaN and infinity.
        """
        first, second = [], []
        with SliceReader() as slices:
            for each in (change.low_rank for change in self._changes[name]):
                assert each is not None
                first.append(_finite(slices, each.a))
                b = each.scale * _finite(slices, each.b)[:outputs]
                second.append(F.pad(b, (0, 0, 0, outputs - len(b))))
        return torch.cat(first), torch.cat(second, 1)

    @property
    def files(self) -> list[Path]:
        """Return the files that say how weights change, in the order of the adapters."""
        return [folder / name for folder in self.folders for name in (ADAPTER_CONFIG, WEIGHTS_FILE)]

    def merged(self, name: str, rows: Tensor, dtype: torch.dtype, start: int = 0) -> Tensor:
        """Return the rows of a weight from ``start`` on with all changes, rounded once to ``dtype``.

        ``rows`` are returned as they are if no adapter changes them. Raises CheckpointError for NaN and infinity.
        """
        if (changes := self._changes.get(name)) is None:
            return rows
        result = torch.empty(rows.shape, dtype=dtype, device=rows.device)
        step = max(1, _BLOCK_ELEMENTS // max(rows[0].numel(), 1)) if rows.dim() else 1
        with SliceReader() as slices:
            for first in range(0, len(rows), step):
                block = rows[first : first + step].float()
                for change in changes:
                    block = _changed(change, block, start + first, slices)
                result[first : first + step] = block
        return result


def _finite(slices: SliceReader, stored: StoredTensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Return rows of an adapter's tensor in float32. Raises CheckpointError for NaN and infinity."""
    values = slices.rows(stored, start, stop).float()
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(f"{stored.file}: {stored.stored_name} holds NaN or infinity", COPY_AGAIN)
    return values


def _changed(change: Change, block: Tensor, start: int, slices: SliceReader) -> Tensor:
    """Return a float32 block of rows from ``start`` on with one adapter's change.

    A table of the model may have more rows than the adapter's: those stay as they are.
    """
    stop = start + len(block)

    def read(stored: StoredTensor, *, all_rows: bool = False) -> Tensor:
        first, last = (0, None) if all_rows else (start, max(start, min(stop, stored.info.shape[0])))
        return _finite(slices, stored, first, last).to(block.device)

    if change.whole is not None:
        values = read(change.whole)
        block = torch.cat((values, block[len(values) :]))
    if change.added is not None:
        stored, scale = change.added
        block = block + scale * read(stored)
    if (each := change.embedding) is not None:
        ids = read(each.a, all_rows=True)[:, start:stop]
        changed = torch.addmm(block[: ids.shape[1]], ids.T, read(each.b, all_rows=True).T, alpha=each.scale)
        block = torch.cat((changed, block[len(changed) :]))
    if (each := change.low_rank) is not None:
        b = read(each.b)
        changed = torch.addmm(block[: len(b)], b, read(each.a, all_rows=True), alpha=each.scale)
        if each.magnitude is not None:
            length = torch.linalg.vector_norm(changed, dim=1, keepdim=True)
            changed = changed * (read(each.magnitude).view(-1, 1) / length)
        block = torch.cat((changed, block[len(changed) :]))
    return block
