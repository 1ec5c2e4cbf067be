"""What encoding images in float8 costs the built-in model: ``python -m tests.benchmarks.fast_images``.

The same held-out questions with and without, on a CPU, where torch's operations compute what ``--fast`` does on a GPU.
"""

import argparse
import sys

from mllama_cli.engine.engine import load
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.vision_float8 import round_tower
from mllama_cli.sketch.evaluate import held_out
from mllama_cli.sketch.questions.samples import TASKS
from mllama_cli.system.paths import built_in_model
from tests.benchmarks.quantized_answers import right_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="held-out samples of each task")
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    samples = [sample for task in TASKS for sample in held_out(task, given.samples)]
    engine = load(built_in_model(), device="cpu", dtype="float32", vision=True, exact=True)
    exact = right_answers(engine, samples, given.batch)
    assert isinstance(engine.network, MllamaForConditionalGeneration)
    round_tower(engine.network.model.vision_model)
    right = right_answers(engine, samples, given.batch)
    lost = sum(before and not after for before, after in zip(exact, right, strict=True))
    won = sum(after and not before for before, after in zip(exact, right, strict=True))
    write = sys.stdout.write
    write("| images | right | became wrong | became right |\n|---|---|---|---|\n")
    write(f"| as stored | {100 * sum(exact) / len(exact):.2f} % | | |\n")
    write(f"| float8 | {100 * sum(right) / len(right):.2f} % | {lost} | {won} |\n")
    write(f"{len(samples)} questions, {given.samples} of each of {len(TASKS)} tasks\n")


if __name__ == "__main__":
    main()
