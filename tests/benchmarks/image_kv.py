"""What 8 bits for the keys and values of images cost: ``python -m tests.benchmarks.image_kv``.

First the error of attention's output with random numbers in the 11B's shape, then right answers of the built-in model
to the same held-out questions with and without.
"""

import argparse
import sys

import torch
from torch import Tensor

from mllama_cli.engine.engine import load
from mllama_cli.engine.weights.shapes import SHAPES
from mllama_cli.model.image_kv import Float8KV
from mllama_cli.model.layers import grouped_attention
from mllama_cli.sketch.evaluate import held_out
from mllama_cli.sketch.questions.samples import TASKS
from mllama_cli.system.paths import built_in_model
from tests.benchmarks.quantized_answers import right_answers

SHARPNESS = (1.0, 2.0, 4.0)
"""Standard deviations of the scores, from attention that is spread over all tokens to that to a few."""


def attention_error(sharpness: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the relative error of attention to the largest image when all is in ``dtype``, and in 8 bits."""
    text, vision = SHAPES["11b"].text_config, SHAPES["11b"].vision_config
    assert vision is not None
    tokens, generator = vision.max_num_tiles * vision.tokens_per_tile, torch.Generator().manual_seed(0)

    def drawn(heads: int, rows: int) -> Tensor:
        return torch.randn(1, heads, rows, text.head_dim, generator=generator)

    keys, values = (drawn(text.num_key_value_heads, tokens) for _ in range(2))
    query = sharpness * drawn(text.num_attention_heads, 4)
    exact = grouped_attention(query, keys, values)
    whole = [(keys.to(dtype), values.to(dtype))]
    errors = []
    for layers in (whole, Float8KV.of(whole)):
        out = grouped_attention(query.to(dtype).float(), *(tensor.float() for tensor in layers[0]))
        errors.append(float((out - exact).norm() / exact.norm()))
    return errors[0], errors[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="held-out samples of each task")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    write = sys.stdout.write
    write("| standard deviation of the scores | bfloat16 | fp8 |\n|---|---|---|\n")
    for sharpness in SHARPNESS:
        whole, rounded = attention_error(sharpness, torch.bfloat16)
        write(f"| {sharpness:g} | {100 * whole:.2f} % | {100 * rounded:.2f} % |\n")
        sys.stdout.flush()
    samples = [sample for task in TASKS for sample in held_out(task, given.samples)]
    exact, right = (
        right_answers(load(built_in_model(), device=given.device, vision=True, image_kv=kv), samples, given.batch)
        for kv in (None, "fp8")
    )
    lost = sum(before and not after for before, after in zip(exact, right, strict=True))
    won = sum(after and not before for before, after in zip(exact, right, strict=True))
    write("\n| images | right | became wrong | became right |\n|---|---|---|---|\n")
    write(f"| as computed | {100 * sum(exact) / len(exact):.2f} % | | |\n")
    write(f"| fp8 | {100 * sum(right) / len(right):.2f} % | {lost} | {won} |\n")
    write(f"{len(samples)} questions, {given.samples} of each of {len(TASKS)} tasks\n")


if __name__ == "__main__":
    main()
