"""The header of a safetensors file: right for what safetensors writes, and one clear error for what it never would."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mllama_cli.checkpoint.header import MAX_HEADER_BYTES, MAX_TENSORS, STORED_DTYPES, read_header
from mllama_cli.core.errors import CheckpointError


def file_with(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(**changes: Any) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}).encode()


def test_offsets_lead_to_the_tensors_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored = {
        "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "one": torch.tensor(7.5),
        "none": torch.zeros(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    save_file(stored, path, metadata={"format": "pt"})
    header, content = read_header(path), path.read_bytes()
    assert header.keys() == stored.keys()
    for name, tensor in stored.items():
        info = header[name]
        assert info.shape == tuple(tensor.shape)
        assert content[info.start : info.end] == bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())
    assert {name: info.dtype for name, info in header.items()} == {
        "half": "BF16", "one": "F32", "none": "F32", "bytes": "U8",
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [2.0]},
        {"shape": "2"},
        {"shape": None},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0]},
        {"data_offsets": ["0", "8"]},
        {"data_offsets": [-8, 0]},
    ],
    ids=str,
)
def test_an_entry_that_makes_no_sense_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = file_with(tmp_path / "x.safetensors", entry(**changes), bytes(8))
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*\bw\b") as caught:
        read_header(path)
    assert caught.value.hint


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=lambda header: repr(header[:9]))
def test_a_header_that_is_no_json_object(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors is not a sound safetensors file"):
        read_header(file_with(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("metadata", [5, [], "pt", {"format": 1}, {"format": {"a": "b"}}], ids=str)
def test_metadata_that_is_not_texts(tmp_path: Path, metadata: object) -> None:
    header = json.dumps({"__metadata__": metadata}).encode()
    with pytest.raises(CheckpointError, match="its __metadata__ is not a list of texts"):
        read_header(file_with(tmp_path / "x.safetensors", header))
    assert read_header(file_with(tmp_path / "x.safetensors", b'{"__metadata__": {"format": "pt"}}')) == {}


def test_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(number): empty for number in range(MAX_TENSORS + 1)}).encode()
    with pytest.raises(CheckpointError, match=f"it has {MAX_TENSORS + 1} tensors"):
        read_header(file_with(tmp_path / "x.safetensors", header))


def test_a_header_larger_than_any_model_has_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match=f"its header has {MAX_HEADER_BYTES + 1} bytes"):
        read_header(path)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="cut short"):
        read_header(path)


def test_a_header_of_millions_of_values_is_not_read(tmp_path: Path) -> None:
    header = b'{"w": [' + b"[]," * 1_100_000 + b"[]]}"
    with pytest.raises(CheckpointError, match="values"):
        read_header(file_with(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("keep", [0, 5, 8, 40])
def test_a_file_cut_within_its_header(tmp_path: Path, keep: int) -> None:
    path = file_with(tmp_path / "x.safetensors", entry(), bytes(8))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cut short"):
        read_header(path)


def test_a_file_cut_within_its_weights_says_where(tmp_path: Path) -> None:
    path = file_with(tmp_path / "x.safetensors", entry(), bytes(7))
    size = path.stat().st_size
    with pytest.raises(CheckpointError, match=f"cut short: w ends at byte {size + 1}, the file at {size}"):
        read_header(path)


def test_a_clone_without_git_lfs_is_told_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 4976698672\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer") as caught:
        read_header(path)
    assert "git lfs pull" in caught.value.hint


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", STORED_DTYPES)
def test_dtypes_are_as_wide_as_torch_says(name: str) -> None:
    dtype: torch.dtype = getattr(torch, STORED_DTYPES[name].torch_name)
    assert dtype.itemsize * 8 == STORED_DTYPES[name].bits
