"""Plan the import of GGUF files: an ordinary checkpoint of the same model, with its tokenizer and chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from mllama_cli.checkpoint.gguf.config import gguf_config, is_projector
from mllama_cli.checkpoint.gguf.header import GgufFile
from mllama_cli.checkpoint.gguf.vocabulary import GgufVocabulary, gguf_vocabulary
from mllama_cli.checkpoint.gguf.weights import GgufWeight, gguf_weights, require_layers
from mllama_cli.checkpoint.reader import CheckpointReader
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.core.config import GenerationConfig, MllamaConfig
from mllama_cli.core.errors import CheckpointError, MllamaError
from mllama_cli.hub.catalog import installed
from mllama_cli.hub.kinds import config_of
from mllama_cli.model.mllama import empty_network
from mllama_cli.processing.tokenizer_build import IMAGE, llama_tokenizer, token_ids
from mllama_cli.quantization.config_groups import quantization_config
from mllama_cli.quantization.imported import imported_companions, imported_layers
from mllama_cli.quantization.linear import linear_layers
from mllama_cli.quantization.plan import QuantizePlan, shards_of

IMPORTED = "imported_from_gguf"
"""Key in config.json of an imported model: the files, and how rows of cross-attention were read."""

_SAME_ROWS = 0.9
"""Cosine above which rows of two models are the same: 4-bit weights have 0.99 with their originals, others about 0."""


@dataclass(frozen=True)
class GgufModel:
    """A model's ``files``, and what ollama keeps with them: licence text, sampling defaults."""

    files: tuple[GgufFile, ...]
    license: bytes = b""
    sampling: Mapping[str, Any] = field(default_factory=dict)


def import_plan(model: GgufModel, bits: int, *, interleaved: bool | None = None) -> tuple[QuantizePlan, str]:
    """Return the plan, and how the rows of cross-attention are read and why, for the user.

    Args:
        bits: of the language model's matrices in the new checkpoint: 4, 8, or 16 to leave them as they are.
        interleaved: whether the halves of a head are interleaved in query and key rows of cross-attention. By default
            this is seen from an installed 16-bit model of the same weights; without one they are taken to be.

    Raises CheckpointError for files that are damaged, do not belong together or are of another model.
    """
    raw = gguf_config(model.files)
    config = MllamaConfig.from_dict(raw)
    require_layers(model.files, config)
    text = next(file for file in model.files if not is_projector(file))
    vocabulary = gguf_vocabulary(text.entries, str(text.path))
    ids = token_ids(vocabulary.special)
    raw["text_config"].update(ids)
    network = empty_network(config)
    expected = {name: parameter.shape for name, parameter in network.named_parameters()}
    weights = gguf_weights(model.files, expected, config, interleaved_cross_attention=interleaved is not False)
    said = "as given"
    if interleaved is None:
        interleaved, said = _seen_order(weights, config)
        if not interleaved:
            weights = gguf_weights(model.files, expected, config, interleaved_cross_attention=False)
    order = "interleaved" if interleaved else "in order"
    raw[IMPORTED] = {"files": [file.path.name for file in model.files], "cross_attention_rows": order}
    linears = linear_layers(network)
    layers, method = imported_layers(linears, weights, config, bits)
    if layers.schemes:
        raw["quantization_config"] = quantization_config(layers.schemes, layers.kept)
    plan = QuantizePlan(
        sources=tuple(file.path for file in model.files),
        method=method,
        layers=layers,
        shards=shards_of(weights, layers),
        config=raw,
        companions=_companions(model, config, vocabulary, ids),
        reading=f"cross-attention {order}",
    )
    return plan, f"Query and key rows of cross-attention are read as {order} ({said})."


def _seen_order(weights: Mapping[str, GgufWeight], config: MllamaConfig) -> tuple[bool, str]:
    """Return whether cross-attention rows are interleaved, and how that is known."""
    layer = min(config.text_config.cross_attention_layers, default=None)
    name = f"model.language_model.layers.{layer}.cross_attn.q_proj.weight"
    assumed = True, "as ollama writes them; no 16-bit model is here to compare with"
    if name not in weights:
        return assumed
    weight = weights[name]
    count = weight.info.shape[0] // config.text_config.num_attention_heads
    with SliceReader() as slices:
        readings = {order: slices.rows(each, 0, count) for order, each in _readings(weight).items()}
        for entry in installed():
            if IMPORTED in config_of(entry.path):
                continue  # whose order was not known either
            try:
                stored = CheckpointReader(entry.path).tensors.get(name)
                if (
                    stored is None
                    or stored.info.dtype not in ("F32", "F16", "BF16")
                    or stored.info.shape != weight.info.shape
                ):
                    continue
                rows = slices.rows(stored, 0, count)
            except MllamaError:
                continue
            for interleaved, reading in readings.items():
                if F.cosine_similarity(rows.float(), reading.float()).mean() > _SAME_ROWS:
                    return interleaved, f"seen from {entry.name}"
    return assumed


def _readings(weight: GgufWeight) -> dict[bool, GgufWeight]:
    return {True: weight, False: replace(weight, heads=0)}


def _companions(
    model: GgufModel, config: MllamaConfig, vocabulary: GgufVocabulary, ids: Mapping[str, Any]
) -> dict[str, bytes | Path]:
    special = {token: id_ for token, id_ in vocabulary.special.items() if id_ < config.image_token_index}
    tokenizer = llama_tokenizer(
        vocabulary.tokens,
        {**special, IMAGE: config.image_token_index},
        vocabulary.merges,
        str(model.files[0].path),
    )
    made = imported_companions(config, tokenizer, ids, sampling=_own_sampling(model.sampling))
    return {**made, "LICENSE": model.license} if model.license else made


def _own_sampling(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling parameters of ollama that generation_config.json knows too; none if one makes no sense."""
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
             "repeat_penalty": "repetition_penalty"}  # fmt: skip
    own = {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
    try:
        GenerationConfig.from_dict(own)
    except CheckpointError:
        return {}
    return own
