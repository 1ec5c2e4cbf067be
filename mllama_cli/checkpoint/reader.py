"""Reads the weights of a checkpoint folder: memory-mapped, and strict both ways."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mllama_cli.checkpoint.names import canonical
from mllama_cli.checkpoint.safetensors_header import TensorInfo, read_header
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.json_file import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NEVER_NEEDED = (".rotary_emb.inv_freq",)
_MAY_HAVE_MORE_ROWS = ("lm_head.weight", "embed_tokens.weight")


@dataclass(frozen=True)
class StoredTensor:
    """Where a weight lies."""

    file: Path
    stored_name: str
    info: TensorInfo

    @property
    def nbytes(self) -> int:
        return self.info.end - self.info.start


class CheckpointReader:
    """The weights of one folder, by their names inside (checkpoint/names.py).

    Opening reads only the headers. Raises CheckpointError for a missing shard, a damaged file or an index that does not
    fit the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        for file in self._files():
            for name, info in read_header(file).items():
                if name.endswith(_NEVER_NEEDED):
                    continue
                inside = canonical(name)
                if inside in self.tensors:
                    raise CheckpointError(f"{folder}: weight {name} stands in two files")
                self.tensors[inside] = StoredTensor(file, name, info)

    def _files(self) -> list[Path]:
        single, index = self.folder / SINGLE, self.folder / INDEX
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointError(f"{index} names no weights", "Download or copy the file again.")
            files = [self.folder / name for name in sorted(set(weight_map.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise CheckpointError(
                    f"{self.folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing[:3])}",
                    "The download is not complete: run `mllama download` again.",
                )
            return files
        if single.is_file():
            return [single]
        found = sorted(file.name for file in self.folder.glob("*") if file.suffix in (".bin", ".pth", ".gguf"))
        raise CheckpointError(
            f"{self.folder} has no weights (no {SINGLE} or {INDEX}"
            + (f"; {found[0]} is in a format that is not read)" if found else ")"),
            "Point to a folder in Hugging Face layout with safetensors weights.",
        )

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Raise CheckpointError unless the files hold exactly the ``expected`` weights.

        Vocabulary tables may have more rows than expected: people enlarge lm_head for fine-tuning.
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
            if self.tensors[name].info.dtype not in DTYPES:
                raise CheckpointError(
                    f"{self.tensors[name].file}: {name} is stored as {self.tensors[name].info.dtype}, "
                    "which is not read (F32, F16 and BF16 are)"
                )

    def read(self, names: Iterator[str] | list[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor on the CPU), file by file. Tensors are views of the mapped files: nothing is copied."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        for file, inside in by_file.items():
            try:
                with safe_open(file, framework="pt", device="cpu") as opened:
                    for name in inside:
                        yield name, opened.get_tensor(self.tensors[name].stored_name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} cannot be read: {error}", "Download or copy the file again.") from error
