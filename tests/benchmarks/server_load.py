"""Load a server with clients that each ask again as soon as they have their answer.

    python -m tests.benchmarks.server_load --random 11b --pause 20    # on a GPU, random weights
    python -m tests.benchmarks.server_load --random tiny --clients 2 4 --long 500 --alone-tokens 16
    python -m tests.benchmarks.server_load --url http://127.0.0.1:11434
    python -m tests.benchmarks.random_checkpoint FOLDER --device cuda
    python -m tests.benchmarks.server_load --model FOLDER --peer FOLDER --scenarios alone clients --clients 8

Measured over HTTP, in OpenAI's protocol, with JPEGs of 1120 x 1120 pixels, which are four tiles:

- one client alone, beside what `mllama bench` measures in the server's process before it serves (with --random);
- several clients, each image a new one;
- the time between tokens of running answers while long prompts arrive;
- a second question about an image, and several at once about a new one: the time to the first token.
"""

import argparse
import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tests.benchmarks.chat_client import Client, Timed, image_url, question
from tests.benchmarks.server_processes import our_server, transformers_server

QUESTION = "Describe this picture."
SCENARIOS = ("alone", "clients", "shared", "long")
FIRST_TOKENS = 8
"""Length of answers of which only the first token counts."""

Row = dict[str, float]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed.

    >>> percentile([4, 1, 3, 2], 0.5), percentile([1, 2, 3], 0.99)
    (2, 3)
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(answers: Sequence[Timed], seconds: float) -> Row:
    """Return the figures of a scenario; times are milliseconds."""
    first = [1000 * answer.times[0] for answer in answers]
    gaps = [1000 * gap for answer in answers for gap in answer.gaps] or [0.0]
    figures = {
        "answers": len(answers),
        "ttft_p50": percentile(first, 0.5),
        "ttft_p95": percentile(first, 0.95),
        "between_p50": percentile(gaps, 0.5),
        "between_p99": percentile(gaps, 0.99),
        "between_max": max(gaps),
        "tokens_per_s": sum(answer.completion_tokens for answer in answers) / seconds,
        "tokens_per_s_client": percentile([answer.rate for answer in answers], 0.5),
        "answers_per_s": len(answers) / seconds,
    }
    return {name: round(figure, 3) for name, figure in figures.items()}


async def crowd(client: Client, images: Sequence[Sequence[str | None]], tokens: int, text: str = QUESTION) -> Row:
    """Let one client for each list of images ask about one after the other."""

    async def asks(number: int, mine: Sequence[str | None]) -> list[Timed]:
        return [
            await client.ask(question(text if image else f"Tell story {number}.{turn}.", image), tokens)
            for turn, image in enumerate(mine)
        ]

    begun = time.perf_counter()
    answers = await asyncio.gather(*(asks(number, mine) for number, mine in enumerate(images)))
    return summary([answer for each in answers for answer in each], time.perf_counter() - begun)


async def beside_long_prompts(client: Client, streams: int, tokens: int, length: int) -> Row:
    """Time the tokens of ``streams`` answers while prompts of ``length`` tokens arrive, one after the other."""
    short, longer = [await client.ask(question("word " * count), 1) for count in (100, 200)]
    words = max(1, round(length * 100 / (longer.prompt_tokens - short.prompt_tokens)))

    async def long(number: int) -> Timed:
        return await client.ask(question(f"{number} " + "word " * words), 1)

    alone = await long(-1)
    running = [asyncio.create_task(client.ask(question(f"Tell tale {number}."), tokens)) for number in range(streams)]
    arrived: list[Timed] = []
    begun = time.perf_counter()
    while not all(task.done() for task in running):
        arrived.append(await long(len(arrived)))
    row = summary(await asyncio.gather(*running), time.perf_counter() - begun)
    return {
        **row,
        "long_prompts": len(arrived),
        "long_prompt_tokens": max(answer.prompt_tokens for answer in arrived),
        "long_ttft_alone": round(1000 * alone.times[0], 3),
        "long_ttft_p50": round(percentile([1000 * answer.times[0] for answer in arrived], 0.5), 3),
    }


async def follow_up(client: Client, images: Sequence[str]) -> Row:
    """Ask a second question about each image."""
    answers = []
    for image in images:
        messages = question(QUESTION, image)
        first = await client.ask(messages, FIRST_TOKENS)
        messages += [{"role": "assistant", "content": first.text}, *question("And what is on its left?")]
        answers.append(await client.ask(messages, FIRST_TOKENS))
    return summary(answers, sum(answer.times[-1] for answer in answers))


async def measure(client: Client, given: argparse.Namespace) -> dict[str, Row]:
    """Return the figures of each scenario by its name."""
    rows: dict[str, Row] = {}
    count = map(image_url, itertools.count(time.time_ns()))  # none that this server has seen before

    def fresh(clients: int, rounds: int) -> list[list[str]]:
        return [[next(count) for _ in range(rounds)] for _ in range(clients)]

    def done(name: str, row: Row) -> None:
        rows[name] = row
        print(line(name, row), file=sys.stderr, flush=True)

    await asyncio.sleep(given.pause)
    for warm_up in (fresh(1, 2), [[None] * 2]):  # builds kernels and captures graphs
        await crowd(client, warm_up, given.tokens)
    if "alone" in given.scenarios:
        done("alone", await crowd(client, fresh(1, given.rounds), given.alone_tokens))
        done("alone, a new image", await crowd(client, fresh(1, given.firsts), FIRST_TOKENS))
        done("alone, text", await crowd(client, [[None] * given.firsts], FIRST_TOKENS))
        done("alone, a second question about an image", await follow_up(client, fresh(1, given.firsts)[0]))
    for clients in given.clients if "clients" in given.scenarios else ():
        images = fresh(clients, given.rounds)
        await crowd(client, fresh(clients, 1), FIRST_TOKENS)
        done(f"{clients} clients", await crowd(client, images, given.tokens))
    if "shared" in given.scenarios:
        for number in range(2):  # the first is a warm-up
            row = await crowd(client, fresh(1, 1) * 10, given.tokens, f"Question {number}")
        done("10 questions about one image at once", row)
    if "long" in given.scenarios:
        streams = min(given.clients)
        name = f"{streams} clients while prompts of {given.long} tokens arrive"
        done(name, await beside_long_prompts(client, streams, given.alone_tokens, given.long))
    return rows


HEAD = ("TTFT p50 / p95", "between tokens p50 / p99 / max", "tokens/s", "tokens/s a client", "answers/s")


def line(name: str, row: Row) -> str:
    return (
        f"| {name} | {row['ttft_p50']:.1f} / {row['ttft_p95']:.1f} ms "
        f"| {row['between_p50']:.2f} / {row['between_p99']:.2f} / {row['between_max']:.2f} ms "
        f"| {row['tokens_per_s']:.1f} | {row['tokens_per_s_client']:.1f} | {row['answers_per_s']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--random", metavar="11b|90b|tiny", help="start a server with random weights of this shape")
    which.add_argument("--model", help="start `mllama serve -m MODEL`")
    which.add_argument("--url", help="a server that runs already")
    parser.add_argument("--device", default="auto", help="of the server that is started")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="with --random")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--rounds", type=int, default=3, help="questions of each client")
    parser.add_argument("--firsts", type=int, default=20, help="questions of which only the first token counts")
    parser.add_argument("--tokens", type=int, default=64, help="length of answers")
    parser.add_argument("--alone-tokens", type=int, default=256, help="length of answers alone and beside long prompts")
    parser.add_argument("--long", type=int, default=8000, help="tokens of a long prompt")
    parser.add_argument("--pause", type=float, default=0, help="seconds in which a new server captures its graphs")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--scenarios", choices=SCENARIOS, nargs="+", default=SCENARIOS)
    parser.add_argument("--peer", metavar="FOLDER", help="then measure `transformers serve` with this checkpoint")
    given = parser.parse_args()
    records: dict[str, Any]
    if given.url:
        records = record(given, given.url, {})
    else:
        with our_server(given) as (url, figures):
            records = record(given, url, figures)
    if given.peer:
        with transformers_server(given.peer, given.device) as url:
            records["peer"] = record(given, url, {}, given.peer)
    if given.json:
        print(json.dumps(records))
        return
    show(records)
    if given.peer:
        show(records["peer"])


def record(given: argparse.Namespace, url: str, figures: dict[str, float], model: str = "") -> dict[str, Any]:
    """Return what was measured at an address, whose first model is asked unless one is named."""
    begun = time.monotonic()
    with httpx.Client(trust_env=False, base_url=url, timeout=60) as client:
        model = model or client.get("/v1/models").json()["data"][0]["id"]
        rows = asyncio.run(measure(Client(url, model), given))
        metrics = client.get("/metrics").text
    found: dict[str, Any] = {"model": model, "rows": rows, "bench": figures}
    counted = ("num_requests", "slots", "images_encoded_total", "image_cache_hits_total", "cache_bytes")
    values = (each.removeprefix("mllama:").split() for each in metrics.splitlines() if each.startswith("mllama:"))
    found["metrics"] = {
        words[0].partition("{")[0]: float(words[-1]) for words in values if words[0].startswith(counted)
    }
    found["seconds"] = round(time.monotonic() - begun, 1)
    alone, most = rows.get("alone"), rows.get(f"{max(given.clients)} clients")
    if alone and (decode := figures.get("decode, after an image")):
        found["alone_share_of_bench"] = round(alone["tokens_per_s_client"] / decode, 4)
    if most and (rate := next((value for name, value in figures.items() if name.startswith("captions")), 0)):
        found["crowd_share_of_captions"] = round(most["answers_per_s"] / rate, 4)
    return found


def show(found: dict[str, Any]) -> None:
    print(f"| {found['model']} | {' | '.join(HEAD)} |\n|---|" + "---|" * len(HEAD))
    print("\n".join(line(name, row) for name, row in found["rows"].items()))
    for name, value in found["bench"].items():
        print(f"in the server's process: {name}: {value:.1f}")
    for name in ("alone_share_of_bench", "crowd_share_of_captions"):
        if name in found:
            print(f"{name.replace('_', ' ')}: {found[name]:.1%}")


if __name__ == "__main__":
    main()
