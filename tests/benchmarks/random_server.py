"""Serve a model with random weights: ``python -m tests.benchmarks.random_server 11b --port 11434``.

For measuring the server where no released weights are. Each byte of a prompt is a token, every generated token has
text, and no answer ends before its length limit.
"""

import argparse
import gc
import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mllama_cli.benchmark.captions import caption_rate
from mllama_cli.benchmark.decode import benchmark
from mllama_cli.benchmark.random_network import random_model
from mllama_cli.core.config import ImageProcessorConfig, MllamaConfig, MllamaTextConfig, MllamaVisionConfig
from mllama_cli.engine.device import choose_device, choose_dtype, make_current
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.weights.shapes import SHAPES
from mllama_cli.processing.chat_template import ChatTemplate
from mllama_cli.processing.image_processor import MllamaImageProcessor
from mllama_cli.processing.processor import MllamaProcessor
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.serving.app import create_app
from mllama_cli.serving.run import serve
from mllama_cli.serving.settings import ServerSettings
from mllama_cli.serving.sockets import bind
from tests.checkpoints import SPECIAL, TEMPLATE, byte_alphabet

TINY = MllamaConfig(
    text_config=MllamaTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=(1, 3),
    ),
    vision_config=MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_global_layers=2,
        attention_heads=2,
        image_size=140,
        intermediate_layers_indices=(1, 3),
    ),
)
"""A shape for trying these programs on a CPU."""
ALL_SHAPES = {**SHAPES, "tiny": TINY}


class RandomEngine(Engine):
    """An engine with random weights in a released model's shape, which never ends an answer by itself."""

    def __init__(self, shape: str, device: str, dtype: str, quantize: str | None) -> None:
        chosen = choose_device(device)
        make_current(chosen)
        kind = choose_dtype(dtype, torch.bfloat16, 2**33, chosen)
        self.path, self.name = Path(), f"random-{shape}"
        made, _ = random_model(ALL_SHAPES[shape], dtype=kind, device=chosen, quantize=quantize)
        vision, image_token = made.config.vision_config, made.config.image_token_index
        assert vision is not None
        tokenizer = MllamaTokenizer(wordy_tokenizer(image_token), {"bos_token": SPECIAL[0]})
        processor = MllamaProcessor(
            tokenizer,
            MllamaImageProcessor(ImageProcessorConfig(vision.image_size, vision.max_num_tiles)),
            ChatTemplate(TEMPLATE, tokenizer.special_names),
            image_token,
            made.max_context,
        )
        self.model = LoadedModel(
            made.network, made.config, processor, device=chosen, dtype=made.dtype, prefill_chunk=made.prefill_chunk
        )
        self.model.eos = frozenset()
        self.config, self.generation_config = self.model.config, self.model.generation_config
        self.network, self.processor = self.model.network, self.model.processor
        self.device, self.dtype, self.has_vision = chosen, kind, True


def wordy_tokenizer(image_token: int) -> Tokenizer:
    """Return a tokenizer with text for every id below ``image_token``: bytes, words of four letters, special tokens."""
    alphabet = byte_alphabet()
    vocabulary = {character: byte for byte, character in alphabet.items()}
    for id_ in range(256, image_token - len(SPECIAL)):
        letters = "".join(chr(ord("a") + id_ // 26**power % 26) for power in range(4))
        vocabulary[alphabet[32] + letters] = id_
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, "<|image|>")])
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=tuple(ALL_SHAPES))
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--figures", type=Path, help="first write what `mllama bench` would measure to this file")
    given = parser.parse_args()
    engine = RandomEngine(given.shape, given.device, given.dtype, given.quantize)
    if given.figures:
        figures = {figure.name: figure.value for figure in benchmark(engine.model)}
        rate, slots, tiles = caption_rate(engine.model)
        figures[f"captions a second, {tiles} tiles, {slots} at once"] = rate
        given.figures.write_text(json.dumps(figures))
        gc.collect()
        if engine.device.type == "cuda":
            torch.cuda.empty_cache()
    settings = ServerSettings(slots=given.slots, max_context=given.context, grace=0)
    with bind("127.0.0.1", given.port) as bound:
        app = create_app(engine, settings)
        serve(app, app.state.service, [bound], ready=lambda: None)


if __name__ == "__main__":
    main()
