"""Side by side with transformers on one GPU, in one process, on the same random weights in the full 11B shape.

    python -m tests.benchmarks.transformers_cuda [--tokens 64] [--json]

Pictures of four tiles and of one, and text alone. Times in milliseconds are medians; the runs of both take turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from mllama_cli.benchmark.decode import (
    LONG_PROMPT_TOKENS,
    SHORT_PROMPT_TOKENS,
    decoded,
    first_token,
    prefilled,
    random_ids,
)
from mllama_cli.benchmark.random_network import model_without_tokenizer, random_network
from mllama_cli.engine.weights.shapes import SHAPES
from tests.gpu.test_full_size import transformers_peer
from tests.peers import peer_inputs

TILES = {1: 1, 4: 6}
"""Aspect ratio ids by number of tiles."""


def milliseconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def compare(ours: Callable[[], float], theirs: Callable[[], float], runs: int = 5) -> tuple[float, float]:
    """Medians of both, taking turns after one round to warm up (ours two: the second captures graphs)."""
    ours(), ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


class Peer:
    """transformers' model, asked as its users ask it."""

    def __init__(self, model: Any, image_token: int) -> None:
        self.model, self.image_token = model, image_token
        model.generation_config.eos_token_id = None

    def inputs(self, ids: list[int], image: tuple[torch.Tensor, int] | None) -> dict[str, Any]:
        made = peer_inputs([ids], [[(image[0].float().cpu(), image[1])] if image else []], self.image_token, 4)
        placed = {name: t.cuda() for name, t in made.items()}
        return {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in placed.items()}

    def generate(self, inputs: dict[str, Any], tokens: int) -> None:
        self.model.generate(**inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)

    def vision(self, inputs: dict[str, Any]) -> None:
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        self.model.model.vision_model(**{name: inputs[name] for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import transformers

    config, device = SHAPES["11b"], torch.device("cuda")
    torch.manual_seed(0)
    network = random_network(config, dtype=torch.bfloat16, device=device)
    model = model_without_tokenizer(network, config, dtype=torch.bfloat16, device=device, prefill_chunk=4096)
    peer = Peer(transformers_peer(network), config.image_token_index)
    network.model.vision_model.fuse_projections()  # the same numbers in another order: transformers keeps its own
    rows: list[tuple[str, float, float, str]] = []

    steps: int = options.tokens - 1

    def our_first(image: tuple[torch.Tensor, int]) -> float:
        return 1000 * first_token(model, image)

    def our_rate(encoded: Any) -> float:
        tokens = decoded(model, encoded, steps + 1)
        next(tokens)
        return steps / milliseconds(lambda: list(tokens)) * 1000

    def peer_rate(asked: Any) -> float:
        first = milliseconds(lambda: peer.generate(asked, 1))
        return steps / (milliseconds(lambda: peer.generate(asked, steps + 1)) - first) * 1000

    with torch.inference_mode():
        for tiles, ratio in TILES.items():
            image = (torch.randn(tiles, 3, 560, 560).to(device, torch.bfloat16), ratio)
            ids = [config.image_token_index, *random_ids(model, SHORT_PROMPT_TOKENS)]
            given = peer.inputs(ids, image)
            rows.append(
                (
                    f"vision tower, {tiles}-tile image",
                    *compare(
                        partial(milliseconds, partial(model.vision.encode, *image)),
                        partial(milliseconds, partial(peer.vision, given)),
                    ),
                    "ms",
                )
            )
            rows.append(
                (
                    f"first token, {tiles}-tile image and {SHORT_PROMPT_TOKENS} tokens",
                    *compare(
                        partial(our_first, image),
                        partial(milliseconds, partial(peer.generate, given, 1)),
                        3,
                    ),
                    "ms",
                )
            )
        ids = random_ids(model, LONG_PROMPT_TOKENS)
        long = {"input_ids": torch.tensor([ids], device=device)}
        rows.append(
            (
                f"prefill, {LONG_PROMPT_TOKENS} tokens of text",
                *compare(
                    lambda: milliseconds(lambda: prefilled(model, ids, None)),
                    lambda: milliseconds(lambda: peer.model(**long, use_cache=True, logits_to_keep=1)),
                ),
                "ms",
            )
        )
        lengths = iter(range(SHORT_PROMPT_TOKENS + 1, LONG_PROMPT_TOKENS))

        def new_length() -> list[int]:
            return random_ids(model, next(lengths))

        def our_new() -> float:
            ids = new_length()
            return milliseconds(lambda: prefilled(model, ids, None))

        def peer_new() -> float:
            asked = {"input_ids": torch.tensor([new_length()], device=device)}
            return milliseconds(lambda: peer.model(**asked, use_cache=True, logits_to_keep=1))

        rows.append(("prefill of a length not seen before, 25 to 50 tokens", *compare(our_new, peer_new), "ms"))
        short = {"input_ids": torch.tensor([random_ids(model, SHORT_PROMPT_TOKENS)], device=device)}
        encoded = model.vision.encode(*image)
        for name, seen, asked in (("text", None, short), ("after a 4-tile image", encoded, given)):
            rows.append(
                (
                    f"decode, {name}",
                    *compare(
                        partial(our_rate, seen),
                        partial(peer_rate, asked),
                        3,
                    ),
                    "tokens/s",
                )
            )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name()}"
    if options.json:
        print(json.dumps({"versions": versions, "rows": rows}))
        return
    print(versions)
    for name, ours, theirs, unit in rows:
        print(f"{name:52} mllama {ours:8.1f}   transformers {theirs:8.1f} {unit}")


if __name__ == "__main__":
    main()
