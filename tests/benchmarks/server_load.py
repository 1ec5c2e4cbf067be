"""Load a server with clients that each ask again as soon as they have their answer.

    python -m tests.benchmarks.server_load --random 11b           # on a GPU, random weights
    python -m tests.benchmarks.server_load --model sketch --clients 2 --tokens 16 --long 500
    python -m tests.benchmarks.server_load --url http://127.0.0.1:11434

Measured over HTTP, in OpenAI's protocol, with images of four tiles:

- one client alone, beside what `mllama bench` measures in the server's process before it serves (with --random);
- several clients, each image a new one, and once all with the same image;
- the time between tokens of running answers while long prompts arrive;
- a second question about an image: the time to its first token.
"""

import argparse
import asyncio
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.chat_client import Client, Timed, image_url, question

QUESTION = "Describe this picture."
START_SECONDS = 300.0

Row = dict[str, float | str]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed.

    >>> percentile([4, 1, 3, 2], 0.5), percentile([1, 2, 3], 0.99)
    (2, 3)
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(name: str, answers: Sequence[Timed], seconds: float) -> Row:
    """Return the figures of a scenario; milliseconds unless the name says otherwise."""
    first = [1000 * answer.times[0] for answer in answers]
    gaps = [1000 * gap for answer in answers for gap in answer.gaps] or [0.0]
    return {
        "scenario": name,
        "ttft_p50": percentile(first, 0.5),
        "ttft_p95": percentile(first, 0.95),
        "between_p50": percentile(gaps, 0.5),
        "between_p99": percentile(gaps, 0.99),
        "tokens_per_s": sum(answer.completion_tokens for answer in answers) / seconds,
        "tokens_per_s_client": percentile([answer.rate for answer in answers], 0.5),
        "answers_per_s": len(answers) / seconds,
    }


async def crowd(client: Client, name: str, images: Sequence[Sequence[str]], tokens: int) -> Row:
    """Let one client for each list of images ask about one after the other."""

    async def asks(mine: Sequence[str]) -> list[Timed]:
        return [await client.ask(question(QUESTION, image), tokens) for image in mine]

    begun = time.perf_counter()
    answers = await asyncio.gather(*map(asks, images))
    return summary(name, [answer for each in answers for answer in each], time.perf_counter() - begun)


async def beside_long_prompts(client: Client, streams: int, tokens: int, length: int) -> Row:
    """Time the tokens of ``streams`` answers while prompts of ``length`` tokens arrive, one after the other."""
    short, longer = [await client.ask(question("word " * count), 1) for count in (100, 200)]
    words = max(1, round(length * 100 / (longer.prompt_tokens - short.prompt_tokens)))
    running = [asyncio.create_task(client.ask(question(f"Tell story {number}."), tokens)) for number in range(streams)]
    arrived: list[Timed] = []
    begun = time.perf_counter()
    while not all(task.done() for task in running):
        arrived.append(await client.ask(question(f"{len(arrived)} " + "word " * words), 1))
    answers = await asyncio.gather(*running)
    size = max(answer.prompt_tokens for answer in arrived)
    name = f"{streams} clients while {len(arrived)} prompts of {size} tokens arrive"
    return summary(name, answers, time.perf_counter() - begun)


async def follow_up(client: Client, images: Sequence[str], tokens: int) -> Row:
    """Ask a second question about each image."""
    answers = []
    for image in images:
        messages = question(QUESTION, image)
        first = await client.ask(messages, tokens)
        messages += [{"role": "assistant", "content": first.text}, *question("And what is on its left?")]
        answers.append(await client.ask(messages, tokens))
    return summary("second question about an image, alone", answers, sum(answer.times[-1] for answer in answers))


async def measure(client: Client, given: argparse.Namespace) -> list[Row]:
    def distinct(clients: int, rounds: int) -> list[list[str]]:
        return [[next(fresh) for _ in range(rounds)] for _ in range(clients)]

    fresh = (image_url(seed) for seed in range(1 << 30))
    rows: list[Row] = []

    def done(row: Row) -> None:
        rows.append(row)
        print(line(row), file=sys.stderr)

    await crowd(client, "", distinct(1, 2), given.tokens)  # builds kernels and captures graphs
    done(await crowd(client, "alone", distinct(1, given.rounds), given.alone_tokens))
    for clients in given.clients:
        images = distinct(clients, given.rounds)
        await crowd(client, "", distinct(clients, 1), given.tokens)
        done(await crowd(client, f"{clients} clients", images, given.tokens))
    shared = [[next(fresh)] * given.rounds for _ in range(1)] * max(given.clients)
    done(await crowd(client, f"{max(given.clients)} clients, one image", shared, given.tokens))
    done(await beside_long_prompts(client, min(given.clients), given.alone_tokens, given.long))
    done(await follow_up(client, [next(fresh) for _ in range(given.rounds)], given.tokens))
    return rows


HEAD = ("TTFT p50 / p95", "between tokens p50 / p99", "tokens/s", "tokens/s a client", "answers/s")


def line(row: Row) -> str:
    return (
        f"| {row['scenario']} | {row['ttft_p50']:.1f} / {row['ttft_p95']:.1f} ms "
        f"| {row['between_p50']:.2f} / {row['between_p99']:.2f} ms | {row['tokens_per_s']:.1f} "
        f"| {row['tokens_per_s_client']:.1f} | {row['answers_per_s']:.2f} |"
    )


@contextmanager
def started(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the address of a server that ends with the block, and what was benchmarked in its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        if given.random:
            module = ["tests.benchmarks.random_server", given.random, "--figures", str(figures)]
            words = [*module, "--port", port, *(["--slots", str(given.slots)] if given.slots else [])]
        else:
            words = ["mllama_cli", "serve", "-m", given.model, "--port", port]
            words += ["--slots", str(given.slots)] if given.slots else []
        server = subprocess.Popen([sys.executable, "-m", *words], stdout=sys.stderr)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, server)
            yield url, json.loads(figures.read_text()) if figures.exists() else {}
        finally:
            server.terminate()
            server.wait()


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--random", metavar="11b|90b", help="start a server with random weights of this shape")
    which.add_argument("--model", help="start `mllama serve -m MODEL`")
    which.add_argument("--url", help="a server that runs already")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--rounds", type=int, default=3, help="questions of each client")
    parser.add_argument("--tokens", type=int, default=64, help="length of answers")
    parser.add_argument("--alone-tokens", type=int, default=256, help="length of answers alone and beside long prompts")
    parser.add_argument("--long", type=int, default=8000, help="tokens of a long prompt")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.url:
        report(given, given.url, {})
    else:
        with started(given) as (url, figures):
            report(given, url, figures)


def report(given: argparse.Namespace, url: str, figures: dict[str, float]) -> None:
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    rows = asyncio.run(measure(Client(url, model), given))
    record: dict[str, Any] = {"model": model, "rows": rows, "bench": figures}
    if decode := figures.get("decode, after an image"):
        record["alone_share_of_bench"] = float(rows[0]["tokens_per_s_client"]) / decode
    if given.json:
        print(json.dumps(record))
        return
    print(f"| {model} | {' | '.join(HEAD)} |\n|---|" + "---|" * len(HEAD))
    print("\n".join(map(line, rows)))
    for name, value in figures.items():
        print(f"in the server's process: {name}: {value:.1f}")
    if decode:
        print(f"alone: {record['alone_share_of_bench']:.1%} of the decoding speed without HTTP")


if __name__ == "__main__":
    main()
