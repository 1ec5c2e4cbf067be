"""Open a checkpoint: its headers, and an empty network that its weights fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllama_cli.checkpoint.contents import Contents
from mllama_cli.checkpoint.files import WAY_OUT
from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.stored import Form
from mllama_cli.core.config import MllamaConfig, section
from mllama_cli.core.errors import CheckpointError
from mllama_cli.model.mllama import MllamaForConditionalGeneration, empty_network
from mllama_cli.model.text import MllamaForCausalLM
from mllama_cli.quantization.linear import linear_layers, replace_linears
from mllama_cli.quantization.schemes import Scheme
from mllama_cli.system.json_file import read_json


@dataclass(frozen=True)
class OpenedNetwork:
    """A checkpoint whose weights fit an empty ``network`` of its ``config``, and the shapes of these weights, by name.

    The output layer is not among them if it shares the embeddings: it is ``tied``.
    """

    reader: CheckpointReader
    config: MllamaConfig
    network: MllamaForConditionalGeneration | MllamaForCausalLM
    expected: Mapping[str, torch.Size]
    tied: bool


def open_network(folder: Path, raw: Mapping[str, Any] | None = None) -> OpenedNetwork:
    """Read the headers of a checkpoint and build its empty network. ``raw`` is its config.json, if it is read already.

    Raises CheckpointError for weights that are missing, not supported, or not those of config.json.
    """
    raw = read_json(folder / "config.json") if raw is None else raw
    reader = CheckpointReader(folder, section(raw, "quantization_config"))
    config = reader.fitted(MllamaConfig.from_dict(raw))
    network = empty_network(config)
    _replace_packed(network, reader.contents)
    expected = {name: tensor.shape for name, tensor in network.named_parameters()}
    tied = config.text_config.tie_word_embeddings and "lm_head.weight" not in reader.tensors
    tied = tied and expected.pop("lm_head.weight", None) is not None
    reader.check(expected)
    return OpenedNetwork(reader, config, network, expected, tied)


def _replace_packed(network: nn.Module, contents: Contents) -> None:
    """Replace the layers of an empty network whose matrices are stored in our packed layout. Raises CheckpointError."""
    linears = linear_layers(network)
    if "model.language_model.embed_tokens" in contents.packed or "model.embed_tokens" in contents.packed:
        raise CheckpointError("The embeddings are quantized, which is not supported", WAY_OUT)
    packed = {name: scheme_of(form) for name, form in contents.packed.items() if name in linears}
    for name, scheme in packed.items():
        if not scheme.divides(linears[name]):
            raise CheckpointError(
                f"The {scheme} of {name} do not divide its {linears[name]} inputs",
                "The file may be damaged or made for another model.",
            )
    replace_linears(network, packed)


def scheme_of(form: Form) -> Scheme:
    """Return the scheme of a form that our packed layout holds."""
    assert form.packing is not None
    return Scheme(form.packing.bits, form.packing.group_size, form.packing.code)
