"""Read the weights of a checkpoint folder, memory-mapped, and check that they match the config exactly."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mllama_cli.checkpoint.files import weight_files
from mllama_cli.checkpoint.header import STORED_DTYPES, TensorInfo, read_header
from mllama_cli.checkpoint.names import canonical
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError

_NEVER_NEEDED = (".rotary_emb.inv_freq",)
_MAY_HAVE_MORE_ROWS = ("lm_head.weight", "embed_tokens.weight", "lm_head.weight_packed", "lm_head.weight_scale")
_WEIGHT_DTYPES = ("F32", "F16", "BF16")
_INTEGER_DTYPES = {"weight_packed": ("I32",), "weight_shape": ("I64", "I32")}


@dataclass(frozen=True)
class StoredTensor:
    """A weight's file, its name there, and its header entry."""

    file: Path
    stored_name: str
    info: TensorInfo

    @property
    def nbytes(self) -> int:
        return self.info.nbytes


def torch_dtype(info: TensorInfo) -> torch.dtype:
    """Return the dtype of a stored tensor."""
    dtype: torch.dtype = getattr(torch, STORED_DTYPES[info.dtype].torch_name)
    return dtype


class CheckpointReader:
    """The weights of one folder, by our names of them (checkpoint/names.py).

    Opening reads only the headers. Raises CheckpointError for a missing shard, a damaged file or an index that does not
    match the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for file in weight_files(folder):
            for name, info in read_header(file).items():
                if name.endswith(_NEVER_NEEDED):
                    continue
                inside = canonical(name)
                if inside in self.tensors:
                    raise CheckpointError(f"{folder}: weight {name} is in two files")
                self.tensors[inside] = StoredTensor(file, name, info)

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Raise CheckpointError unless the files hold exactly the ``expected`` weights.

        Vocabulary tables may have more rows than expected, since fine-tuning often enlarges lm_head.
        """
        missing = [name for name in expected if name not in self.tensors]
        unknown = [name for name in self.tensors if name not in expected]
        for problem, names in (("lacks weights", missing), ("has unknown weights", unknown)):
            if names:
                raise CheckpointError(
                    f"{self.folder} {problem}: {', '.join(names[:3])}"
                    + (f" and {len(names) - 3} more" * (len(names) > 3)),
                    "config.json and the weight files do not belong together, or a file is missing.",
                )
        for name, shape in expected.items():
            stored, wanted = self.tensors[name].info.shape, tuple(shape)
            longer = name.endswith(_MAY_HAVE_MORE_ROWS) and stored[1:] == wanted[1:] and stored[0] >= wanted[0]
            if stored != wanted and not longer:
                raise CheckpointError(
                    f"{self.tensors[name].file}: {name} has shape {list(stored)}, config.json asks for {list(wanted)}",
                    "config.json and the weight files do not belong together.",
                )
            readable = _INTEGER_DTYPES.get(name.rpartition(".")[2], _WEIGHT_DTYPES)
            if self.tensors[name].info.dtype not in readable:
                raise CheckpointError(
                    f"{self.tensors[name].file}: {name} is stored as {self.tensors[name].info.dtype}, "
                    f"which is not read here ({', '.join(readable)} would be)",
                    "Convert the checkpoint, or download or copy the file again.",
                )

    def read(self, names: Iterator[str] | list[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor on the CPU), file by file. Tensors are views of the mapped files, not copies."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        for file, inside in by_file.items():
            try:
                with safe_open(file, framework="pt", device="cpu") as opened:
                    for name in inside:
                        yield name, opened.get_tensor(self.tensors[name].stored_name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} cannot be read: {error}", COPY_AGAIN) from error
