"""What fewer bits cost the built-in model in right answers: ``python -m tests.benchmarks.quantized_answers``.

Every way to quantize it answers the same held-out questions, so two ways differ in few of them by chance: the
table also has how many right answers became wrong and the reverse.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mllama_cli.engine.engine import Engine, load
from mllama_cli.quantization.plan import make_plan
from mllama_cli.quantization.policy import QuantizeOptions
from mllama_cli.quantization.quantize import quantize
from mllama_cli.quantization.rounding import METHODS
from mllama_cli.quantization.schemes import Scheme
from mllama_cli.sketch.evaluate import answers_to, conversation_of, grammar_of, held_out
from mllama_cli.sketch.questions.grading import is_right
from mllama_cli.sketch.questions.samples import TASKS, Sample
from mllama_cli.system.paths import built_in_model

WAYS = {
    "8 bit, 128, rtn": QuantizeOptions(Scheme(8, 128), "rtn"),
    "8 bit, 128, search": QuantizeOptions(Scheme(8, 128)),
    **{
        f"4 bit, {size}, {method}": QuantizeOptions(Scheme(4, size), method)
        for size in (128, 64, 32)
        for method in METHODS
    },
}


def right_answers(engine: Engine, samples: Sequence[Sample], batch: int) -> list[bool]:
    said = answers_to(engine, map(conversation_of, samples), batch, map(grammar_of, samples))
    return [is_right(sample, answer) for sample, answer in zip(samples, said, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="held-out samples of each task")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--exact", action="store_true", help="keep activations whole: the weights' loss alone")
    given = parser.parse_args()
    samples = [sample for task in TASKS for sample in held_out(task, given.samples)]
    source = built_in_model()
    exact = right_answers(load(source, device=given.device, vision=True, exact=given.exact), samples, given.batch)
    write = sys.stdout.write
    write("| weights | right | became wrong | became right | size |\n|---|---|---|---|---|\n")
    size = (source / "model.safetensors").stat().st_size
    write(f"| 16 bit | {100 * sum(exact) / len(exact):.2f} % | | | {size / 1e6:.1f} MB |\n")
    for name, options in WAYS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "made"
            plan = make_plan(source, options)
            for _ in quantize(plan, folder):
                pass
            right = right_answers(
                load(folder, device=given.device, vision=True, exact=given.exact), samples, given.batch
            )
        lost = sum(before and not after for before, after in zip(exact, right, strict=True))
        won = sum(after and not before for before, after in zip(exact, right, strict=True))
        share = 100 * sum(right) / len(right)
        write(f"| {name} | {share:.2f} % | {lost} | {won} | {plan.size_after / 1e6:.1f} MB |\n")
        sys.stdout.flush()
    write(f"{len(samples)} questions, {given.samples} of each of {len(TASKS)} tasks\n")


if __name__ == "__main__":
    main()
