"""Try the hostile set: inputs that broke this program or others, each in a process of its own.

    python -m tests.hostile [--category NAME ...] [--quick] [--jobs N]

Prints what was tried and what the program survived, with the worst memory and time, by category, as the table in
SECURITY.md. Exits 1 if it did not survive an input.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.hostile.cases import Outcome
from tests.hostile.categories import CATEGORIES, HEADER, QUICK_STEP, row, try_category


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument("--category", action="append", choices=CATEGORIES, help="try these alone")
    parser.add_argument("--quick", action="store_true", help=f"try one in {QUICK_STEP}, and nothing heavy")
    parser.add_argument("--jobs", type=int, default=1, help="categories tried at the same time")
    parser.add_argument("--worst", action="store_true", help="name the worst inputs of each category")
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    chosen = options.category or list(CATEGORIES)
    quick = [options.quick] * len(chosen)
    total: list[Outcome] = []
    print(HEADER, flush=True)
    # No category's imports count as memory of another.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for category, outcomes in zip(chosen, pool.map(try_category, chosen, quick), strict=True):
            total += outcomes
            print(row(category, outcomes), flush=True)
            for problem in (each for each in outcomes if each.problem):
                print(f"{category}: {problem.name}: {problem.problem}", file=sys.stderr, flush=True)
            if options.worst:
                largest = max(outcomes, key=lambda each: each.memory)
                slowest = max(outcomes, key=lambda each: each.seconds)
                print(f"{category}: most memory {largest.name}; most time {slowest.name}", file=sys.stderr, flush=True)
    if len(chosen) > 1:
        print(row("all", total))
    return int(any(outcome.problem for outcome in total))


if __name__ == "__main__":
    sys.exit(main())
