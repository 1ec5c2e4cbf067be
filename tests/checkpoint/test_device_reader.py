"""Reading weights to a device by threads: every byte, in order, in bounded memory, with errors that name the file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mllama_cli.checkpoint import device_reader, extents
from mllama_cli.checkpoint.device_reader import read_to_device
from mllama_cli.checkpoint.extents import Extent, PieceBuffer
from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import CheckpointError

CPU = torch.device("cpu")
SIZES = {"tall": (700, 3), "wide": (5, 4096), "vector": (1000,), "scalar": (), "square": (64, 64), "empty": (0, 8)}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (extents, device_reader):
        monkeypatch.setattr(module, "PIECE_BYTES", 4096)
    monkeypatch.setattr(extents, "MAX_VECTORS", 16)
    monkeypatch.setattr(device_reader, "reader_threads", lambda ranks: 4 // ranks)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    return {
        name: torch.randn(size, generator=generator).to(dtypes[index % 3])
        for index, (name, size) in enumerate(SIZES.items())
    }


@pytest.fixture
def stored(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, StoredTensor]:
    names, files = list(tensors), ("model-1.safetensors", "model-2.safetensors")
    save_file({name: tensors[name] for name in names[:3]}, tmp_path / files[0])
    save_file({name: tensors[name] for name in names[3:]}, tmp_path / files[1])
    where = {name: files[index // 3] for index, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return dict(CheckpointReader(tmp_path).tensors)


def test_tensors_arrive_whole_and_in_order(stored: dict[str, StoredTensor], tensors: dict[str, torch.Tensor]) -> None:
    order = sorted(stored, reverse=True)
    arrived = list(read_to_device([(name, stored[name]) for name in order], CPU))
    assert [name for name, _ in arrived] == order
    for name, tensor in arrived:
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name]), name
    assert list(read_to_device([], CPU)) == []


@pytest.mark.parametrize("limit", [None, 2])
def test_only_some_rows_and_columns_are_read(
    stored: dict[str, StoredTensor],
    tensors: dict[str, torch.Tensor],
    limit: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limit is not None:  # so that each run is read by a call of its own
        monkeypatch.setattr(extents, "MAX_SKIPPED_BYTES", limit)
    parts = {
        "tall": (slice(100, 699), slice(1, 3)),
        "wide": (slice(0, 5), slice(1000, 2100)),
        "square": (slice(3, 64), slice(0, 64)),
    }
    names = list(stored)
    arrived = dict(read_to_device([(name, stored[name]) for name in names], CPU, parts, ranks=2))
    for name in names:
        assert torch.equal(arrived[name], tensors[name][parts[name]] if name in parts else tensors[name]), name


def test_reading_goes_on_after_short_reads(
    stored: dict[str, StoredTensor], tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def short(file: int, buffers: list[memoryview], position: int) -> int:
        wanted = memoryview(bytearray(min(37, sum(map(len, buffers)))))
        count, done = preadv(file, [wanted], position), 0
        for buffer in buffers:
            size = min(len(buffer), count - done)
            buffer[:size] = wanted[done : done + size]
            done += size
        return count

    monkeypatch.setattr(os, "preadv", short)
    part = (slice(0, 700), slice(0, 2))
    chosen = [(name, stored[name]) for name in ("tall", "square")]
    arrived = dict(read_to_device(chosen, CPU, {"tall": part}))
    assert torch.equal(arrived["tall"], tensors["tall"][part])
    assert torch.equal(arrived["square"], tensors["square"])


def test_no_more_than_the_window_is_read_ahead(
    stored: dict[str, StoredTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    begin = Extent.pieces

    def noted(extent: Extent) -> Iterator[tuple[int, int]]:
        read.append("piece")
        return begin(extent)

    monkeypatch.setattr(device_reader, "WINDOW_BYTES", stored["square"].nbytes)
    arriving = read_to_device([(str(index), stored["square"]) for index in range(5)], CPU)
    monkeypatch.setattr(Extent, "pieces", noted)
    next(arriving)
    counted = len(read)  # 5 to count them all, one for the first
    next(arriving)
    assert len(read) == counted + 1
    arriving.close()


def test_a_file_that_ends_early_is_named(stored: dict[str, StoredTensor]) -> None:
    file = stored["square"].file
    os.truncate(file, file.stat().st_size - 100)
    chosen = [(name, stored[name]) for name in stored if stored[name].file == file]
    with pytest.raises(CheckpointError, match=f"{file.name} ends early"):
        list(read_to_device(chosen, CPU))


def test_a_file_that_is_gone_is_named(stored: dict[str, StoredTensor]) -> None:
    stored["wide"].file.unlink()
    with pytest.raises(CheckpointError, match=f"{stored['wide'].file.name} cannot be opened"):
        list(read_to_device(list(stored.items()), CPU))


def test_a_reader_that_is_closed_leaves_no_thread_reading(
    stored: dict[str, StoredTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = 0
    read = PieceBuffer.read

    def counted(self: PieceBuffer, file: int, extent: Extent, offset: int, count: int) -> None:
        nonlocal inside
        inside += 1
        read(self, file, extent, offset, count)
        inside -= 1

    monkeypatch.setattr(PieceBuffer, "read", counted)
    arriving = read_to_device([(str(index), stored["wide"]) for index in range(200)], CPU)
    next(arriving)
    arriving.close()
    assert inside == 0
