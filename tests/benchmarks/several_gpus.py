"""A model shared by several GPUs, beside one GPU and transformers with ``device_map="auto"``, on random weights.

    python -m tests.benchmarks.several_gpus --device cuda:0,cuda:1 11b 90b 90b:int8 90b:int4 [--peer]

Prints tokens per second after an image of four tiles and after text, and the time to the first token. transformers
(``--peer``, needs accelerate) has the shape in bfloat16, without quantization; the other numbers of its run are ours.
"""

import argparse
import gc
import statistics
import time
from typing import Any

import torch

from mllama_cli.benchmark.decode import SHORT_PROMPT_TOKENS, decode_rate, first_token, largest_ratio
from mllama_cli.benchmark.random_network import random_model
from mllama_cli.core.config import MllamaConfig
from mllama_cli.engine.weights.shapes import SHAPES
from tests.peers import peer_inputs

TOKENS = 128
PEER_TOKENS = 24


def ours(shape: MllamaConfig, devices: list[torch.device], quantize: str | None) -> str:
    model, _ = random_model(shape, dtype=torch.bfloat16, device=devices[0], others=devices[1:], quantize=quantize)
    vision = shape.vision_config
    assert vision is not None
    ratio = largest_ratio(model)
    tiles = (vision.tiles(ratio), vision.num_channels, vision.image_size, vision.image_size)
    image = (torch.randn(tiles).to(devices[0], model.dtype), ratio)
    encoded = model.vision.encode(*image)
    rates = [decode_rate(model, each, TOKENS) for each in (encoded, None)]
    firsts = [1000 * first_token(model, each) for each in (image, None)]
    if model.team is not None:
        model.team.close()
    return line(rates, firsts) + (f" (fallback: {model.decoder.fallback_reason})" * bool(model.decoder.fallback_reason))


def peer(shape: MllamaConfig, devices: list[torch.device]) -> str:
    """Measure transformers' generate() with the layers shared out over the devices, one after the other."""
    model = peer_model(shape, devices)
    ids = torch.randint(0, 128000, (SHORT_PROMPT_TOKENS,)).tolist()
    pixels = torch.randn(4, 3, 560, 560)
    image = peer_inputs([[shape.image_token_index, *ids]], [[(pixels, 6)]], shape.image_token_index, 4)
    rates, firsts = [], []
    for given in (image, {"input_ids": torch.tensor([ids])}):
        placed = {
            name: each.to(devices[0], torch.bfloat16 if each.is_floating_point() else each.dtype)
            for name, each in given.items()
        }

        def seconds(tokens: int, placed: dict[str, Any] = placed) -> float:
            start = time.perf_counter()
            model.generate(**placed, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
            torch.cuda.synchronize()
            return time.perf_counter() - start

        seconds(2)
        first = statistics.median(seconds(1) for _ in range(3))
        firsts.append(1000 * first)
        rates.append(max(PEER_TOKENS / (seconds(PEER_TOKENS + 1) - first) for _ in range(2)))
    return line(rates, firsts)


def peer_model(shape: MllamaConfig, devices: list[torch.device]) -> Any:
    """Return transformers' model of this shape, made on its devices, as ``device_map="auto"`` would place it."""
    from accelerate import dispatch_model, infer_auto_device_map
    from transformers import MllamaConfig as PeerConfig
    from transformers import MllamaForConditionalGeneration as PeerModel

    config: Any = PeerConfig()
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        setattr(config.text_config, name, getattr(shape.text_config, name))
    config.text_config.cross_attention_layers = list(shape.text_config.cross_attention_layers)
    config.vision_config.image_size = 560
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        made: Any = PeerModel(config)
        model = made.to(torch.bfloat16)
    each = sum(parameter.numel() for parameter in model.parameters()) * 2 / len(devices)
    memory = {device.index if device.type == "cuda" else "cpu": int(1.08 * each) for device in devices}
    places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=model._no_split_modules)
    for name, place in places.items():
        module = model.get_submodule(name).to_empty(device=f"cuda:{place}" if isinstance(place, int) else place)
        for parameter in module.parameters():
            parameter.data.normal_(0, 0.01)
    for module in model.modules():  # buffers that are computed, not stored
        if "RotaryEmbedding" in type(module).__name__:
            with torch.device(devices[0]):
                module.__init__(config.text_config)
    model.generation_config.eos_token_id = None
    return dispatch_model(model.eval().requires_grad_(False), places)


def line(rates: list[float], firsts: list[float]) -> str:
    return (
        f"{rates[0]:6.1f} tokens/s after an image, {rates[1]:6.1f} after text; "
        f"first token {firsts[0]:6.1f} ms with an image, {firsts[1]:6.1f} without"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="SHAPE[:int8|:int4]")
    parser.add_argument("--device", required=True, help="cuda:0,cuda:1")
    parser.add_argument("--peer", action="store_true", help="measure transformers, too")
    given = parser.parse_args()
    devices = [torch.device(name) for name in given.device.split(",")]
    print(f"{len(devices)} x {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for name in given.models:
        shape, _, quantize = name.partition(":")
        print(f"{name:9} mllama       {ours(SHAPES[shape], devices, quantize or None)}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        if given.peer and not quantize:
            with torch.inference_mode():
                print(f"{name:9} transformers {peer(SHAPES[shape], devices)}", flush=True)
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
