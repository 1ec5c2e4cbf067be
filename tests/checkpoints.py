"""Make small checkpoints with random weights. No gate, norm, bias or table is left at a trivial value."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mllama_cli.checkpoint.writer import write_checkpoint
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.forward import Network
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaForCausalLM

SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
VOCABULARY = 256 + len(SPECIAL)
BOS, END, PAD, START_HEADER, END_HEADER, EOM, EOT = range(256, 263)

TEMPLATE = (
    "{{ bos_token }}"
    "{%- set pictures = namespace(any=false) %}"
    "{%- for m in messages %}{%- if m.content is not string %}{%- set pictures.any = true %}{%- endif %}{%- endfor %}"
    "{%- if pictures.any and messages[0].role == 'system' %}"
    "{{ raise_exception('no system message beside images') }}{%- endif %}"
    "{%- for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{%- if m.content is string %}{{ m.content }}{%- else %}"
    "{%- for c in m.content %}{%- if c.type == 'image' %}<|image|>{%- else %}{{ c.text }}{%- endif %}{%- endfor %}"
    "{%- endif %}<|eot_id|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{%- endif %}"
)


def config_dict(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """Return a complete config.json of a tiny model; ``text`` and ``vision`` override."""
    vision_config = {
        "model_type": "mllama_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_global_layers": 2, "attention_heads": 2, "image_size": 56, "patch_size": 14, "max_num_tiles": 4,
        "norm_eps": 1e-5, "num_channels": 3, "hidden_act": "gelu", "intermediate_layers_indices": [1, 3],
        **(vision or {}),
    }  # fmt: skip
    vision_config["vision_output_dim"] = vision_config["hidden_size"] * (
        1 + len(vision_config["intermediate_layers_indices"])
    )
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": VOCABULARY,
        "text_config": {
            "model_type": "mllama_text_model", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "cross_attention_layers": [1, 3], "max_position_embeddings": 2048, "rope_theta": 500000.0,
            "hidden_act": "silu", "dropout": 0, "initializer_range": 0.02, "tie_word_embeddings": False,
            "use_cache": True, "bos_token_id": BOS, "eos_token_id": [END, EOM, EOT], "pad_token_id": PAD,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            **(text or {}),
        },
        "vision_config": vision_config,
        "torch_dtype": "float32",
        **top,
    }  # fmt: skip


def random_network(config: dict[str, Any], seed: int = 0, *, equal_unused_tiles: bool = True) -> Network:
    """Return a network with random parameters; ``equal_unused_tiles`` zeroes unused tiles' rows, as released."""
    parsed = MllamaConfig.from_dict(config)
    torch.manual_seed(seed)
    network: Network = (
        MllamaForConditionalGeneration(parsed) if parsed.vision_config else MllamaForCausalLM(parsed.text_config)
    )
    network.eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            if "q_norm" in name or "k_norm" in name:
                centre = 2.5  # sharp cross-attention, so that another image gives another answer
            parameter.normal_(centre, 0.3 if "gate" not in name else 0.8)
        elif "embed" in name:
            parameter.normal_(0, 0.8)
        else:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    if parsed.vision_config and equal_unused_tiles:
        vision: Any = network.model.vision_model
        for table in (
            vision.pre_tile_positional_embedding.embedding.weight,
            vision.post_tile_positional_embedding.embedding.weight,
            vision.gated_positional_embedding.tile_embedding.weight,
        ):
            for id_ in range(len(parsed.vision_config.supported_aspect_ratios) + 1):
                used = parsed.vision_config.tiles(id_) if id_ else 0
                table[id_].unflatten(0, (parsed.vision_config.max_num_tiles, -1))[used:] = 0
    return network


def byte_alphabet() -> dict[int, str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary, as in GPT-2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def byte_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer without merges: id = byte, then Llama 3's special tokens, then <|image|>."""
    vocabulary = {character: byte for byte, character in byte_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, "<|image|>")])
    return tokenizer


def write_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> None:
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_preprocessor(folder: Path, tile: int) -> None:
    settings = {
        "image_processor_type": "MllamaImageProcessor", "size": {"height": tile, "width": tile}, "max_image_tiles": 4,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "resample": 2, "rescale_factor": 1 / 255,
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", settings)


def make_checkpoint(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    template: str | None = TEMPLATE,
    shard_bytes: int = 10**9,
    dtype: torch.dtype = torch.float32,
    generation: dict[str, Any] | None = None,
) -> Path:
    """Write a whole checkpoint folder with random weights. Answers are reproducible noise."""
    config = config or config_dict()
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.to(dtype) for name, p in random_network(config, seed).named_parameters()}
    write_checkpoint(folder, weights, config, shard_bytes=shard_bytes)
    write_tokenizer(folder, template=template)
    write_json(folder / "generation_config.json", generation or {"do_sample": False, "eos_token_id": [END, EOM, EOT]})
    if "vision_config" in config:
        write_preprocessor(folder, config["vision_config"]["image_size"])
    return folder


def text_only_config(config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the config.json of the language model alone (MllamaForCausalLM)."""
    text = (config or config_dict())["text_config"]
    return {**text, "architectures": ["MllamaForCausalLM"], "torch_dtype": "float32"}


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[1]))
