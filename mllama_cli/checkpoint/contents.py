"""The weights of a checkpoint folder by our names, read off the headers of its files. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllama_cli.checkpoint.files import weight_files
from mllama_cli.checkpoint.foreign.table import recognized
from mllama_cli.checkpoint.header import read_header
from mllama_cli.checkpoint.names import canonical
from mllama_cli.checkpoint.stored import Form, StoredMatrix, StoredTensor
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown

_NEVER_NEEDED = (".rotary_emb.inv_freq", ".self_attn.q_scale", ".self_attn.k_scale", ".self_attn.v_scale")
"""Tables that are computed, and scales of a quantized KV cache, which is not quantized here."""


@dataclass(frozen=True)
class Contents:
    """The ``tensors`` of a checkpoint, and by module the forms of the matrices in our packed layout."""

    tensors: Mapping[str, StoredTensor]
    packed: Mapping[str, Form]

    def matrices(self) -> Iterator[tuple[str, StoredMatrix]]:
        """Yield the matrices in the forms of other tools, by module."""
        for name, stored in self.tensors.items():
            if isinstance(stored, StoredMatrix):
                yield name.removesuffix(".weight"), stored


def read_contents(folder: Path, declared: Mapping[str, Any] | None = None) -> Contents:
    """Read the headers of a folder; ``declared`` is the quantization_config of its config.json.

    Raises CheckpointError for a missing shard, a damaged file, an index that does not match the files, and weights in a
    form that is not supported.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, info in read_header(file).items():
            if name.endswith(_NEVER_NEEDED):
                continue
            inside = canonical(name)
            if inside in tensors:
                raise CheckpointError(f"{folder}: weight {shown(name)} is there twice")
            tensors[inside] = StoredTensor(file, name, info)
    return Contents(*recognized(tensors, declared or {}))
