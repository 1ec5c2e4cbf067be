"""Files written as streams are files that safetensors reads, and slices of them are what it reads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllama_cli.checkpoint.header import read_header
from mllama_cli.checkpoint.shard_writer import ShardWriter, TensorSpec
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.checkpoint.stored import StoredTensor
from mllama_cli.core.errors import CheckpointError

TENSORS = {
    "gate": torch.tensor([0.5], dtype=torch.bfloat16),
    "odd": torch.arange(15, dtype=torch.float32).view(5, 3).to(torch.float16),
    "words": torch.arange(21, dtype=torch.int32).view(7, 3),
    "scalar": torch.tensor(2.5),
    "shape": torch.tensor([7, 24]),
    "nothing": torch.empty(0, 4),
}
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int32: "I32", torch.int64: "I64"}
SPECS = [TensorSpec(name, DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "shard.safetensors", SPECS) as writer:
        assert writer.fresh
        for name in reversed(TENSORS):
            rows = TENSORS[name].split(2) if TENSORS[name].dim() else [TENSORS[name]]
            offset = 0
            for piece in rows:
                offset = writer.write(name, piece, offset)
            assert offset == TENSORS[name].nbytes
    return tmp_path / "shard.safetensors"


def test_safetensors_reads_it_whatever_the_sizes_and_order(file: Path) -> None:
    read = load_file(file)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    for name, info in read_header(file).items():
        assert info.start % TENSORS[name].element_size() == 0, name


def test_slices_are_rows(file: Path) -> None:
    header = read_header(file)
    with SliceReader() as reader:
        for name, tensor in TENSORS.items():
            stored = StoredTensor(file, name, header[name])
            assert torch.equal(reader.rows(stored), tensor)
            if tensor.dim() > 1 and len(tensor):
                assert torch.equal(reader.rows(stored, 1, 4), tensor[1:4])
                assert torch.equal(reader.rows(stored, 4, 99), tensor[4:])


def test_what_an_earlier_run_wrote_stays(file: Path) -> None:
    before = file.read_bytes()
    with ShardWriter(file, SPECS) as writer:
        assert not writer.fresh
    assert file.read_bytes() == before
    with ShardWriter(file, SPECS[:3]) as writer:
        assert writer.fresh
    assert load_file(file).keys() == {"gate", "odd", "words"}


def test_a_file_that_ends_early(file: Path) -> None:
    stored = StoredTensor(file, "odd", read_header(file)["odd"])  # the narrowest come last
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"), SliceReader() as reader:
        reader.rows(stored)
