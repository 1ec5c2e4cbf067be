"""Plan the import of Meta's own files: an ordinary checkpoint of the same model, with its tokenizer."""

import re
from collections.abc import Sequence
from pathlib import Path

from mllama_cli.checkpoint.meta.model_files import MetaFiles, meta_config
from mllama_cli.checkpoint.meta.vocabulary import (
    SPECIAL_TOKENS,
    byte_characters,
    merges_of,
    read_ranks,
    special_tokens,
)
from mllama_cli.checkpoint.meta.weights import meta_weights, read_shards
from mllama_cli.core.config import MllamaConfig, MllamaVisionConfig
from mllama_cli.hub.plan import is_companion_file
from mllama_cli.model.mllama import empty_network
from mllama_cli.processing.tokenizer_build import IMAGE, llama_tokenizer, token_ids
from mllama_cli.quantization.config_groups import quantization_config
from mllama_cli.quantization.imported import imported_companions, imported_layers
from mllama_cli.quantization.linear import linear_layers
from mllama_cli.quantization.plan import QuantizePlan, shards_of
from mllama_cli.system.files import is_file, resolved

_BASE_NAME = re.compile(r"llama[-_. ]?3\.2.*vision(?!.*instruct)", re.IGNORECASE)


def meta_model_name(files: MetaFiles) -> str:
    """Return a name for the model: its folder's, or of ``original`` in a hub repository the repository's."""
    folder = resolved(files.folder)
    if folder.name == "original":
        folder = folder.parent
        if folder.parent.name == "snapshots":  # whose folders are named by commits
            return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def is_base_model(name: str) -> bool:
    """Return whether a name is that of a released model without instruction tuning, which has no chat template.

    >>> is_base_model("Llama3.2-11B-Vision"), is_base_model("Llama-3.2-90B-Vision-Instruct"), is_base_model("mine")
    (True, False, False)
    """
    return _BASE_NAME.search(name) is not None


def meta_plan(files: MetaFiles, bits: int, vision: MllamaVisionConfig | None = None) -> QuantizePlan:
    """Return the plan of a model in Meta's files. Raise CheckpointError if they are damaged or of another model.

    ``bits`` are of the language model's matrices: 4, 8, or 16 to leave them as they are. ``vision`` has what Meta's
    code fixes (``meta_config``).
    """
    tokens = read_ranks(files.tokenizer)
    shards = read_shards(files.shards)
    raw = meta_config(files, shards, len(tokens) + SPECIAL_TOKENS, vision)
    ids = token_ids(special_tokens(len(tokens)))
    raw["text_config"].update(ids)
    config = MllamaConfig.from_dict(raw)
    network = empty_network(config)
    weights = meta_weights(shards, {name: each.shape for name, each in network.named_parameters()}, config)
    layers, method = imported_layers(linear_layers(network), weights, config, bits)
    if layers.schemes:
        raw["quantization_config"] = quantization_config(layers.schemes, layers.kept)
    companions = imported_companions(
        config, _tokenizer(tokens, files.tokenizer, config), ids, template=not is_base_model(meta_model_name(files))
    )
    notices = [path for path in files.folder.iterdir() if path.name.startswith(("LICENSE", "USE_POLICY"))]
    return QuantizePlan(
        sources=(files.folder,),
        method=method,
        layers=layers,
        shards=shards_of(weights, layers),
        config=raw,
        companions={
            **companions,
            **{path.name: path for path in notices if is_file(path) and is_companion_file(path.name)},
        },
    )


def _tokenizer(tokens: Sequence[bytes], path: Path, config: MllamaConfig) -> bytes:
    characters = byte_characters()

    def text(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    special = {**special_tokens(len(tokens)), IMAGE: config.image_token_index}
    merges = [f"{text(first)} {text(second)}" for first, second in merges_of(list(tokens))]
    return llama_tokenizer([text(token) for token in tokens], special, merges, str(path))
