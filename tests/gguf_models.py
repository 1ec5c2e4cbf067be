"""Write GGUF files of small models with the gguf package, as ollama's two converters name and order them.

Each comes with its dense weights, under the Hub's names, as the gguf package decodes them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mllama_cli.checkpoint.names import hub_name
from tests.checkpoints import BOS, EOT, PAD, SPECIAL, byte_alphabet, config_dict, random_network

CONFIG = config_dict(
    {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4,
     "max_position_embeddings": 131072,
     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192}},
    torch_dtype="bfloat16",
)  # fmt: skip

TEXT_NAMES = (
    ("language_model.", ""), ("lm_head", "output"), ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"), ("model.layers", "blk"), ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.down_proj", "ffn_down"),
    ("mlp.up_proj", "ffn_up"), ("post_attention_layernorm", "ffn_norm"), ("cross_attn.", "cross_attn_"),
)  # fmt: skip
VISION_NAMES = (
    ("vision_model.", "v."), ("multi_modal_projector", "mm.0"),
    ("gated_positional_embedding.tile_embedding", "tile_position_embd"),
    ("gated_positional_embedding.embedding", "position_embd.weight"), ("gated_positional_embedding", "position_embd"),
    ("pre_tile_positional_embedding.embedding", "pre_tile_position_embd"),
    ("post_tile_positional_embedding.embedding", "post_tile_position_embd"),
    ("pre_tile_positional_embedding", "pre_tile_position_embd"),
    ("post_tile_positional_embedding", "post_tile_position_embd"), ("class_embedding", "class_embd"),
    ("patch_embedding", "patch_embd"), ("layernorm_pre", "pre_ln"), ("layernorm_post", "post_ln"),
    ("global_transformer.layers", "global.blk"), ("transformer.layers", "blk"), ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"), ("gate_attn", "attn_gate"),
    ("gate_ffn", "ffn_gate"),
)  # fmt: skip
_BY_GENERATION = {
    1: (("self_attn.o_proj", "attn_out"), ("mlp.fc1", "ffn_down"), ("mlp.fc2", "ffn_up"), ("input_layernorm", "ln1"),
        ("post_attention_layernorm", "ln2")),
    2: (("self_attn.o_proj", "attn_output"), ("mlp.fc1", "ffn_up"), ("mlp.fc2", "ffn_down"),
        ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")),
}  # fmt: skip


@dataclass(frozen=True)
class GgufFixture:
    """``files``: one, or the text's and the projector; ``dense`` weights by the Hub's names, in float32."""

    files: tuple[Path, ...]
    config: dict[str, Any]
    dense: dict[str, Tensor]


def write_gguf(
    folder: Path,
    generation: int,
    formats: Callable[[str], str] | None = None,
    *,
    interleaved: bool = True,
    change: Callable[[Any], None] | None = None,
    seed: int = 0,
) -> GgufFixture:
    """Write one model. ``formats`` chooses the format of each matrix of the language model by its Hub name.

    ``interleaved`` is of cross-attention; ``change`` gets the writer of the text file before it is written.
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    folder.mkdir(parents=True, exist_ok=True)
    text, vision = CONFIG["text_config"], CONFIG["vision_config"]
    random = np.random.default_rng(seed)
    dense: dict[str, Tensor] = {}
    files: dict[bool, list[tuple[str, Any, Any]]] = {False: [], True: []}
    for ours, parameter in random_network(CONFIG, seed).named_parameters():
        name, values = hub_name(ours), parameter.detach().numpy()
        heads = 0
        if name.startswith(("vision_model", "multi_modal")):
            form = kinds.F16 if name.endswith("proj.weight") or (".fc" in name and values.ndim == 2) else kinds.F32
            values = values.astype(np.float16 if form == kinds.F16 else np.float32)
            dense[name] = torch.from_numpy(values.astype(np.float32))
            if generation == 2 and name.endswith(("q_proj.weight", "k_proj.weight")):
                values = _interleave(values, vision["attention_heads"])
            files[True].extend((n, v, form) for n, v in vision_tensors(name, values, generation))
            continue
        if values.ndim == 1:
            dense[name] = torch.from_numpy(values.copy())
            files[False].append((renamed(name, TEXT_NAMES), values, kinds.F32))
            continue
        form = kinds[formats(name) if formats else "Q4_K"]
        stored = encoded(values, form, random)
        values = gguf.quants.dequantize(stored, form).reshape(values.shape)
        if name.endswith(("q_proj.weight", "k_proj.weight")) and (interleaved or ".self_attn." in name):
            heads = text["num_attention_heads" if ".q_proj" in name else "num_key_value_heads"]
        dense[name] = torch.from_numpy((_in_order(values, heads) if heads else values).astype(np.float32))
        files[False].append((renamed(name, TEXT_NAMES), stored, form))
    files[False].append(("rope_freqs.weight", rope_factors(text), kinds.F32))
    parts = [files[False], files[True]] if generation == 1 else [files[False] + files[True]]
    paths = []
    for number, tensors in enumerate(parts):
        path = folder / ("model.gguf", "projector.gguf")[number]
        writer = gguf.GGUFWriter(path, "mllama")
        if number == 0:
            text_entries(writer, text)
            if change is not None:
                change(writer)
        if number == len(parts) - 1:
            vision_entries(writer, vision)
        for name, values, form in tensors:
            plain = form in (kinds.F32, kinds.F16)
            writer.add_tensor(name, values, raw_dtype=None if plain else form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return GgufFixture(tuple(paths), CONFIG, dense)


def write_store(
    store: Path, model: GgufFixture, name: str = "registry.ollama.ai/library/llama3.2-vision/latest"
) -> Path:
    """Put a model into a models folder of ollama's, and return its manifest."""
    (store / "blobs").mkdir(parents=True, exist_ok=True)

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    image = "application/vnd.ollama.image."
    layers = [
        blob(image + kind, file.read_bytes()) for kind, file in zip(("model", "projector"), model.files, strict=False)
    ]
    layers += [
        blob(f"{image}template", b"{{- range .Messages }}{{ .Content }}{{- end }}"),
        blob(f"{image}params", b'{"temperature": 0.5, "stop": ["x"]}'),
        blob(f"{image}license", b"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n"),
    ]
    config = blob(
        "application/vnd.docker.container.image.v1+json",
        json.dumps({"model_format": "gguf", "model_family": "mllama", "model_families": ["mllama"]}).encode(),
    )
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": layers}))
    return manifest


def encoded(values: Any, form: Any, random: Any) -> Any:
    """Return a matrix in a format. The gguf package writes no K formats, so their blocks are random and valid."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    if form not in (kinds.Q4_K, kinds.Q5_K, kinds.Q6_K):
        return gguf.quants.quantize(values, form)
    elements, size = gguf.GGML_QUANT_SIZES[form]
    count = values.size // elements
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    if form == kinds.Q6_K:
        blocks[:, -2:] = random.uniform(3e-5, 9e-5, (count, 1)).astype(np.float16).view(np.uint8)
    else:
        factors = np.concatenate((random.uniform(2e-4, 6e-4, (count, 1)), random.uniform(1e-3, 3e-3, (count, 1))), 1)
        blocks[:, :4] = factors.astype(np.float16).view(np.uint8)
    return blocks.reshape(values.shape[0], -1)


def vision_tensors(name: str, values: Any, generation: int) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of one weight: gates as their tanh, and the positions' also as 1 minus it."""
    stored_name = renamed(name, VISION_NAMES + _BY_GENERATION[generation])
    if name.rpartition(".")[2] in ("gate", "gate_attn", "gate_ffn"):
        values = np.tanh(values).astype(np.float32)
        if "gated_positional" in name:
            yield stored_name, 1 - values
            stored_name = "v.tile_position_embd.gate"
    yield stored_name, values


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        name = name.replace(old, new)
    return name


def _interleave(w: Any, heads: int) -> Any:
    return w.reshape(heads, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def _in_order(w: Any, heads: int) -> Any:
    return w.reshape(heads, -1, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def rope_factors(text: dict[str, Any]) -> Any:
    size, factors = text["hidden_size"] // text["num_attention_heads"], []
    for index in range(0, size, 2):
        wave = 2 * math.pi * text["rope_theta"] ** (index / size)
        smooth = 1.0 if wave < 8192 / 4 else 0.0 if wave > 8192 else (8192 / wave - 1) / 3
        factors.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(factors, dtype=np.float32)


def text_entries(writer: Any, text: dict[str, Any], vocabulary: Path | None = None) -> None:
    """Describe the language model, with the tokens of a tokenizer.json or a byte for each token."""
    for key, value in (
        ("vocab_size", text["vocab_size"]), ("block_count", text["num_hidden_layers"]),
        ("context_length", text["max_position_embeddings"]), ("embedding_length", text["hidden_size"]),
        ("feed_forward_length", text["intermediate_size"]), ("attention.head_count", text["num_attention_heads"]),
        ("attention.head_count_kv", text["num_key_value_heads"]),
    ):  # fmt: skip
        writer.add_uint32(f"mllama.{key}", value)
    writer.add_float32("mllama.rope.freq_base", text["rope_theta"])
    writer.add_float32("mllama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("mllama.attention.cross_attention_layers", text["cross_attention_layers"])
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "llama-bpe")
    tokens, kinds, merges, special = tokens_of(vocabulary)
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", kinds)
    writer.add_array("tokenizer.ggml.merges", merges)
    for name, id_ in zip(("bos", "eos", "padding"), special, strict=True):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", id_)


def tokens_of(vocabulary: Path | None) -> tuple[list[str], list[int], list[str], tuple[int, int, int]]:
    """Return tokens, their kinds (1 normal, 3 control), merges, and the ids of begin, end of turn and padding."""
    if vocabulary is None:
        tokens = [*(byte_alphabet()[byte] for byte in range(256)), *SPECIAL]
        return tokens, [1] * 256 + [3] * len(SPECIAL), [], (BOS, EOT, PAD)
    stored = json.loads(vocabulary.read_text())
    ids = stored["model"]["vocab"] | {each["content"]: each["id"] for each in stored["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = [1] * len(stored["model"]["vocab"]) + [3] * (len(tokens) - len(stored["model"]["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    begin, end, padding = (ids[name] for name in ("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"))
    return tokens, kinds, merges, (begin, end, padding)


def vision_entries(writer: Any, vision: dict[str, Any]) -> None:
    for key, value in (
        ("block_count", vision["num_hidden_layers"]), ("global.block_count", vision["num_global_layers"]),
        ("embedding_length", vision["hidden_size"]), ("feed_forward_length", vision["intermediate_size"]),
        ("attention.head_count", vision["attention_heads"]), ("image_size", vision["image_size"]),
        ("patch_size", 14), ("max_num_tiles", 4), ("num_channels", 3),
    ):  # fmt: skip
        writer.add_uint32(f"mllama.vision.{key}", value)
    writer.add_float32("mllama.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("mllama.vision.intermediate_layers_indices", vision["intermediate_layers_indices"])
