"""Captions per second, side by side: ``python -m tests.benchmarks.caption_throughput``.

The built-in model captions drawings in float32: one by one, in slots that are refilled, and by transformers'
generate on the same weights. Pictures are decoded and tiled before the clock starts, for all alike. Each way runs
several times in turn; the best counts, since whatever else runs here only slows down. On a
machine that others use too, ``--threads 1`` and the processor time say more than the clock.

The model's own captions are short. The second table gives each answer a length drawn from those of photo captions, 20
to 120 tokens, by taking the end-of-answer token from all alike.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine, load
from mllama_cli.sketch.evaluate import conversation_of, held_out
from tests.peers import blind_rows_see_nothing, peer_inputs, transformers_model

Answers = dict[int, tuple[int, ...]]
"""Token ids by request."""


def drawings(engine: Engine, count: int, longest: Sequence[int]) -> list[BatchRequest]:
    """Requests in a mixed order: captions of drawings, and short questions about others. Tiles are made."""
    tasks = ("describe", "count", "describe", "where", "describe", "read", "describe", "compare")
    samples = [held_out(task, count) for task in tasks]
    requests = []
    for key in range(count):
        inputs = engine.processor(conversation_of(next(samples[key % len(tasks)])))
        tiles = tuple(engine.processor.tiles(image) for image in inputs.images)
        requests.append(BatchRequest(key, inputs, tiles, Sampling(max_tokens=longest[key])))
    return requests


def ours(engine: Engine, requests: Sequence[BatchRequest], slots: int) -> Answers:
    return {int(str(reply.key)): reply.ids for reply in run_batch(engine.model, requests, slots=slots)}


@dataclass
class Peer:
    """transformers' model on the engine's weights, with its faster attention, answering as Meta's code would."""

    engine: Engine

    def __post_init__(self) -> None:
        config = json.loads((self.engine.path / "config.json").read_text(encoding="utf-8"))
        self.model = transformers_model(config, self.engine.network)
        self.model.set_attn_implementation("sdpa")

    def __call__(self, requests: Sequence[BatchRequest], batch: int) -> Answers:
        answers: Answers = {}
        for start in range(0, len(requests), batch):
            answers.update(self._answer(requests[start : start + batch]))
        return answers

    def _answer(self, requests: Sequence[BatchRequest]) -> Iterator[tuple[int, tuple[int, ...]]]:
        pad, image_token = self.engine.config.text_config.pad_token_id, self.engine.config.image_token_index
        width = max(len(request.inputs.ids) for request in requests)
        rows = [[pad] * (width - len(request.inputs.ids)) + list(request.inputs.ids) for request in requests]
        images = [[(tiles.pixel_values, tiles.aspect_ratio_id) for tiles in request.tiles] for request in requests]
        inputs: dict[str, Any] = dict(peer_inputs(rows, images, image_token, 4))
        inputs["attention_mask"] = torch.tensor(
            [[0] * (width - len(r.inputs.ids)) + [1] * len(r.inputs.ids) for r in requests]
        )
        hooks = blind_rows_see_nothing(self.model, rows, image_token)
        longest = [request.sampling.max_tokens if request.sampling else 0 for request in requests]
        # A batch runs until its longest answer ends.
        self.model.generation_config.eos_token_id = sorted(self.engine.model.eos) or None
        try:
            with torch.inference_mode():
                out = self.model.generate(**inputs, max_new_tokens=max(longest), do_sample=False, pad_token_id=pad)
        finally:
            for hook in hooks:
                hook.remove()
        for request, row, most in zip(requests, out[:, width:].tolist(), longest, strict=True):
            end = next((index for index, token in enumerate(row) if token in self.engine.model.eos), len(row))
            yield int(str(request.key)), tuple(row[: min(end, most)])


@dataclass(frozen=True)
class Result:
    seconds: float
    processor: float
    """Seconds of processor time, of all threads."""
    answers: Answers


def measure(ways: dict[str, Callable[[], Answers]], rounds: int) -> dict[str, Result]:
    best: dict[str, Result] = {}
    for _ in range(rounds):
        for way, run in ways.items():
            start, busy = time.perf_counter(), time.process_time()
            answers = run()
            new = Result(time.perf_counter() - start, time.process_time() - busy, answers)
            old = best.get(way, new)
            best[way] = Result(min(old.seconds, new.seconds), min(old.processor, new.processor), answers)
    return best


def compare(engine: Engine, requests: Sequence[BatchRequest], given: argparse.Namespace) -> None:
    """Every way over the same requests; prints a table."""
    ways: dict[str, Callable[[], Answers]] = {"mllama, one by one": lambda: ours(engine, requests, 1)}
    for n in given.slots:
        ways[f"mllama, {n} slots"] = partial(ours, engine, requests, n)
    if not given.no_peer:
        peer = Peer(engine)
        for n in (1, *given.slots):
            ways[f"transformers, {n} at once"] = partial(peer, requests, n)
    results = measure(ways, given.rounds)
    first = next(iter(results.values()))
    count = len(requests)
    lengths = [len(ids) for ids in first.answers.values()]
    write = sys.stdout.write
    write(
        f"\n{count} drawings, {given.threads} threads, float32; answers of {min(lengths)} to {max(lengths)} "
        f"tokens, {sum(lengths) / len(lengths):.1f} on average\n\n"
    )
    write("| | pictures/s | times one by one | processor time for one | equal answers |\n|---|---|---|---|---|\n")
    for way, result in results.items():
        equal = sum(result.answers[key] == ids for key, ids in first.answers.items())
        write(
            f"| {way} | {count / result.seconds:.2f} | {first.seconds / result.seconds:.2f} "
            f"| {1000 * result.processor / count:.0f} ms | {equal} of {count} |\n"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--slots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    engine = load("sketch", device="cpu", dtype="float32", vision=True)
    compare(engine, drawings(engine, given.pictures, [64] * given.pictures), given)
    lengths = random.Random(0)
    requests = drawings(engine, given.pictures, [lengths.randint(20, 120) for _ in range(given.pictures)])
    engine.model.eos = frozenset()
    compare(engine, requests, given)


if __name__ == "__main__":
    main()
