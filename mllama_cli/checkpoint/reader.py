"""Read the weights of a checkpoint folder, memory-mapped, and check that they match the config exactly."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mllama_cli.checkpoint.contents import read_contents
from mllama_cli.checkpoint.foreign.refused import unsupported
from mllama_cli.checkpoint.header import STORED_DTYPES, TensorInfo
from mllama_cli.checkpoint.stored import StoredMatrix, StoredTensor
from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown

_MAY_HAVE_MORE_ROWS = ("lm_head.weight", "embed_tokens.weight", "lm_head.weight_packed", "lm_head.weight_scale")
_EMBEDDINGS, _TEXT_EMBEDDINGS = "model.language_model.embed_tokens.weight", "model.embed_tokens.weight"
_MISMATCH = "config.json and the weight files do not belong together."
_WEIGHT_DTYPES = ("F32", "F16", "BF16")
_INTEGER_DTYPES = {"weight_packed": ("I32",), "weight_shape": ("I64", "I32")}


def torch_dtype(info: TensorInfo) -> torch.dtype:
    """Return the dtype of a stored tensor."""
    dtype: torch.dtype = getattr(torch, STORED_DTYPES[info.dtype].torch_name)
    return dtype


class CheckpointReader:
    """The weights of one folder, by our names of them (checkpoint/names.py).

    Opening reads only the headers, and of packed matrices what describes them. ``declared`` is quantization_config.
    Raises CheckpointError as ``read_contents`` does.
    """

    def __init__(self, folder: Path, declared: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.declared = declared or {}
        self.contents = read_contents(folder, self.declared)
        self.tensors = self.contents.tensors

    def fitted(self, config: MllamaConfig) -> MllamaConfig:
        """Return the config with the rows that embed_tokens has; its layers must be those of the files.

        Comes before a network is built, which for a wrong config could take all time and memory. Raises
        CheckpointError.
        """
        text, vision = config.text_config, config.vision_config
        towers = {"language_model": ("num_hidden_layers", text.num_hidden_layers)}
        if vision is None:
            towers = {"model": ("num_hidden_layers", text.num_hidden_layers)}
        else:
            towers["vision_model.transformer"] = ("num_hidden_layers", vision.num_hidden_layers)
            towers["vision_model.global_transformer"] = ("num_global_layers", vision.num_global_layers)
        for tower, (name, wanted) in towers.items():
            found = 1 + max(self._layers(tower), default=-1)
            if found != wanted:
                raise CheckpointError(
                    f"{self.folder} has {found} layers of {tower}, config.json asks for {wanted} ({name})", _MISMATCH
                )
        stored = self.tensors.get(_EMBEDDINGS if vision is not None else _TEXT_EMBEDDINGS)
        rows = stored.info.shape[0] if stored is not None and stored.info.shape else text.embeddings
        covered = max(text.vocab_size, config.image_token_index + 1 if vision is not None else 0)
        if rows >= text.embeddings or rows < covered:  # more rows are never read, and with fewer ``check`` fails
            rows = text.embeddings
        if config.image_token_index >= rows and vision is not None:
            raise CheckpointError(
                f"{self.folder}: the image token is {config.image_token_index}, and there are {rows} embeddings",
                _MISMATCH,
            )
        return replace(config, text_config=replace(text, embedding_rows=rows))

    def _layers(self, tower: str) -> Iterator[int]:
        for name in self.tensors:
            above, found, rest = name.partition(f"{tower}.layers.")
            number = rest.partition(".")[0]
            if found and above in ("", "model.") and number.isdecimal() and len(number) < 6:
                yield int(number)

    def check(self, expected: Mapping[str, torch.Size]) -> None:
        """Raise CheckpointError unless the files hold exactly the ``expected`` weights, by name.

        Vocabulary tables may have more rows than expected, since fine-tuning often enlarges lm_head.
        """
        missing = [name for name in expected if name not in self.tensors]
        unknown = [name for name in self.tensors if name not in expected]
        if unknown and isinstance(tool := self.declared.get("quant_method"), str) and not self._is_recognized:
            raise unsupported(shown(tool)[1:-1])
        for problem, names in (("lacks weights", missing), ("has unknown weights", unknown)):
            if names:
                raise CheckpointError(
                    f"{self.folder} {problem}: {', '.join(map(_label, names[:3]))}"
                    + (f" and {len(names) - 3} more" * (len(names) > 3)),
                    "config.json and the weight files do not belong together, or a file is missing.",
                )
        for name, shape in expected.items():
            stored, wanted = self.tensors[name].info.shape, tuple(shape)
            longer = name.endswith(_MAY_HAVE_MORE_ROWS) and stored[1:] == wanted[1:] and stored[0] >= wanted[0]
            if stored != wanted and not longer:
                raise CheckpointError(
                    f"{self.tensors[name].file}: {name} has shape {shown(list(stored))}, "
                    f"config.json asks for {list(wanted)}",
                    _MISMATCH,
                )
            readable = _INTEGER_DTYPES.get(name.rpartition(".")[2], _WEIGHT_DTYPES)
            if self.tensors[name].info.dtype not in readable:
                raise CheckpointError(
                    f"{self.tensors[name].file}: {name} is stored as {shown(self.tensors[name].info.dtype)}, "
                    f"which is not read here ({', '.join(readable)} would be)",
                    "Convert the checkpoint, or download or copy the file again.",
                )

    @property
    def _is_recognized(self) -> bool:
        return bool(self.contents.packed) or any(True for _ in self.contents.matrices())

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor on the CPU), file by file, of plain tensors, as views of the mapped files, not copies."""
        return _mapped({name: self.tensors[name] for name in names})

    def parts(self, matrix: StoredMatrix) -> dict[str, Tensor]:
        """Return the tensors of a matrix in another tool's form, as views of the mapped files."""
        return dict(_mapped(matrix.parts))


def _mapped(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    by_file: dict[Path, list[str]] = {}
    for name, stored in tensors.items():
        by_file.setdefault(stored.file, []).append(name)
    for file, inside in by_file.items():
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                for name in inside:
                    yield name, opened.get_tensor(tensors[name].stored_name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}", COPY_AGAIN) from error


def _label(name: str) -> str:
    return shown(name).strip("'\"")
