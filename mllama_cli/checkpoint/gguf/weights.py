"""The weights of GGUF files by our names, each readable in slices as our checkpoints have them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mllama_cli.checkpoint.gguf.blocks import dequantize
from mllama_cli.checkpoint.gguf.header import GgufFile, GgufTensor
from mllama_cli.checkpoint.gguf.names import DERIVED, gguf_names
from mllama_cli.checkpoint.header import TensorInfo
from mllama_cli.checkpoint.names import hub_name
from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.stored import DecodedTensor, ReadBytes
from mllama_cli.core.config import MllamaConfig
from mllama_cli.core.errors import COPY_AGAIN, CheckpointError
from mllama_cli.core.text import shown

_LARGEST_TANH = 1 - 2**-24
"""The largest float32 below 1: a gate that was rounded to 1 has no finite inverse."""


@dataclass(frozen=True)
class GgufWeight(DecodedTensor):
    """One weight: ``info`` has the dtype and shape that it gets, and its range of bytes in the file.

    Attributes:
        heads: of the query or key rows whose halves are interleaved in each head; 0 if rows are in order.
        is_gate: the file has the tanh of it.
    """

    tensor: GgufTensor
    heads: int = 0
    is_gate: bool = False

    def rows(self, read: ReadBytes, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) as our checkpoints have them. Raise CheckpointError."""
        first, last = start, stop
        if self.heads:  # whole heads
            size = self.info.shape[0] // self.heads
            first, last = start // size * size, -(-stop // size) * size
        form, row = self.tensor.format, self.info.elements // self.info.shape[0]
        data = read(
            self.file,
            self.info.start + first * row // form.elements * form.nbytes,
            (last - first) * row // form.elements * form.nbytes,
        )
        values = dequantize(data, form).view(last - first, *self.info.shape[1:])
        if self.heads:
            values = values.unflatten(0, (-1, size // 2, 2)).transpose(1, 2).flatten(0, 2)[start - first : stop - first]
        if self.is_gate:
            values = self._opened(values)
        return values.to(torch_dtype(self.info))

    def _opened(self, values: Tensor) -> Tensor:
        if bool((values.abs() > 1).any()):
            raise CheckpointError(
                f"{self.stored_name} in {self.file.name} is {values.flatten()[0]:.3g}, which is not the tanh of a gate",
                "ollama made such files in May 2025: pull or download the model again.",
            )
        return torch.atanh(values.double().clamp(-_LARGEST_TANH, _LARGEST_TANH))


def require_layers(files: Iterable[GgufFile], config: MllamaConfig) -> None:
    """Raise CheckpointError unless the files hold the last layer that the config asks for.

    Comes before a network is built, which for a wrong number of layers could take all time and memory.
    """
    files = list(files)
    counts = {"blk": config.text_config.num_hidden_layers}
    if config.vision_config is not None:
        counts |= {
            "v.blk": config.vision_config.num_hidden_layers,
            "v.global.blk": config.vision_config.num_global_layers,
        }
    for stack, count in counts.items():
        found = {
            name.removeprefix(f"{stack}.").partition(".")[0]
            for file in files
            for name in file.tensors
            if name.startswith(f"{stack}.")
        }
        if found and len(found) != count:
            raise CheckpointError(
                f"{files[0].path} has {len(found)} layers called {stack}, its entries say {count}",
                "The files do not belong together, or one is damaged.",
            )


def gguf_weights(
    files: Iterable[GgufFile],
    expected: Mapping[str, torch.Size],
    config: MllamaConfig,
    *,
    interleaved_cross_attention: bool,
) -> dict[str, GgufWeight]:
    """Return the weights of a model's files by our names; ``expected`` are the shapes of its network.

    Raises CheckpointError unless the files hold exactly these weights.
    """
    stored: dict[str, tuple[Path, GgufTensor]] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in stored:
                raise CheckpointError(f"{file.path} has {shown(name)}, and so has {stored[name][0]}", COPY_AGAIN)
            stored[name] = file.path, tensor
    chosen = {name: _chosen(name, tuple(shape), stored) for name, shape in expected.items()}
    newer = "v.blk.0.attn_output.weight" in stored
    missing = [next(gguf_names(name)) for name, found in chosen.items() if found is None]
    used = {found for found in chosen.values() if found is not None}
    unknown = [name for name in stored if name not in used and name not in DERIVED]
    for problem, names in (("lacks weights", missing), ("has unknown weights", unknown)):
        if names:
            raise CheckpointError(
                f"{' and '.join(sorted({str(path) for path, _ in stored.values()}))} {problem}: "
                f"{', '.join(shown(name)[1:-1] for name in names[:3])}"
                + (f" and {len(names) - 3} more" * (len(names) > 3)),
                "If the vision part is in a file of its own, add it: --projector FILE."
                if all(name.startswith(("v.", "mm.")) for name in names) and problem == "lacks weights"
                else COPY_AGAIN,
            )
    weights = {}
    for name, found in chosen.items():
        assert found is not None
        path, tensor = stored[found]
        shape = tuple(expected[name])
        if name.endswith("embed_tokens.weight") and tensor.shape[1:] == shape[1:]:
            shape = tensor.shape
            if shape[0] <= config.image_token_index:
                raise CheckpointError(
                    f"{path}: {found} has {shape[0]} rows, and the image token is {config.image_token_index}",
                    COPY_AGAIN,
                )
        info = TensorInfo(tensor.format.dense, shape, tensor.start, tensor.end)
        if tensor.elements != info.elements or (info.elements // shape[0]) % tensor.format.elements:
            raise CheckpointError(
                f"{path}: {found} has shape {shown(list(tensor.shape))}, its entries ask for {list(shape)}",
                "The files do not belong together, or one is damaged.",
            )
        heads = _heads(name, config, newer=newer, cross=interleaved_cross_attention)
        weights[name] = GgufWeight(
            path, hub_name(name), info, tensor, heads, name.startswith("model.vision") and _gate(name)
        )
    return weights


def _chosen(name: str, shape: tuple[int, ...], stored: Mapping[str, tuple[Path, GgufTensor]]) -> str | None:
    """Return the file's name of our weight. Where two are there, fc1 and fc2, the shape of the matrix decides."""
    there = [each for each in gguf_names(name) if each in stored]
    fitting = [each for each in there if stored[each][1].shape == shape]
    return next(iter(fitting or there), None)


def _gate(name: str) -> bool:
    return name.rpartition(".")[2] in ("gate", "gate_attn", "gate_ffn")


def _heads(name: str, config: MllamaConfig, *, newer: bool, cross: bool) -> int:
    """Return how many heads have interleaved halves in a weight's rows; 0 if they are in order."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return 0
    if name.startswith("model.vision_model."):  # q and k alike, which changes nothing
        vision = config.vision_config
        paired = newer and vision is not None and vision.hidden_size % (2 * vision.attention_heads) == 0
        return vision.attention_heads if paired and vision is not None else 0
    if ".cross_attn." in name and not cross:
        return 0
    text = config.text_config
    return text.num_attention_heads if "q_proj" in name else text.num_key_value_heads
