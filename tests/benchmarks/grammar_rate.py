"""What holding answers to a schema costs: ``python -m tests.benchmarks.grammar_rate --random 11b``.

The same answers with and without a schema, in turn: one alone, and 32 together with 32 different schemas. The schemas
ask for long lists, so that no answer ends before its length limit. Their texts are mostly free, as each certain token
is a gain: a last line counts the certain tokens of a form with long names, and its speed. Without ``--random`` the
built-in model answers on a CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import GenerationStats, Token
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine, load

PROMPT = "List what you know."
ROUNDS = 3


def free_list(number: int) -> Grammar:
    """Return a long list of objects with free texts; each number gives another schema."""
    item = {
        "type": "object",
        "properties": {f"t{number}": {"type": "string", "minLength": 40}},
        "required": [f"t{number}"],
        "additionalProperties": False,
    }
    return Grammar.schema({"type": "object", "properties": {"a": _long(item)}, "required": ["a"]})


def named_list() -> Grammar:
    """Return a long list of objects with long names and short values."""
    names = ("merchant_name", "total_amount", "currency_code", "number_of_items")
    fields = {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in names}
    item = {"type": "object", "properties": fields, "required": list(names), "additionalProperties": False}
    return Grammar.schema({"type": "object", "properties": {"receipts": _long(item)}, "required": ["receipts"]})


def _long(item: dict[str, object]) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": 400}


def alone(engine: Engine, tokens: int, grammar: Grammar | None) -> float:
    """Return tokens per second of one answer, after its first token."""
    sampling = Sampling(temperature=0, max_tokens=tokens, grammar=grammar)
    for event in engine.session().stream(Conversation.ask(PROMPT), sampling):
        if isinstance(event, GenerationStats):
            assert event.completion_tokens == tokens, event
            return event.tokens_per_second
    raise AssertionError("an answer ends with GenerationStats")


def together(engine: Engine, tokens: int, grammars: list[Grammar | None]) -> float:
    """Return tokens per second of all answers, prompts included."""
    prompt = engine.processor(Conversation.ask(PROMPT))
    requests = [
        BatchRequest(key, prompt, sampling=Sampling(temperature=0, max_tokens=tokens, grammar=grammar))
        for key, grammar in enumerate(grammars)
    ]
    start = time.perf_counter()
    for reply in run_batch(engine.model, requests, slots=len(requests)):
        assert reply.completion_tokens == tokens, reply
    return len(requests) * tokens / (time.perf_counter() - start)


def compare(name: str, plain: Callable[[], float], held: Callable[[], float]) -> None:
    """Run both in turn and print their medians."""
    plain(), held()  # captures graphs and compiles grammars
    pairs = [(plain(), held()) for _ in range(ROUNDS)]
    before, after = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    print(f"{name}: {before:.1f} tokens/s without, {after:.1f} with a schema ({100 * (after / before - 1):+.1f} %)")


def certain_tokens(engine: Engine, tokens: int) -> int:
    """Return how many tokens of the form's answer its grammar leaves no choice about."""
    sampling = Sampling(temperature=0, max_tokens=tokens, grammar=named_list())
    constraint = engine.model.constraint(sampling, "")
    assert constraint is not None
    certain = 0
    for event in engine.session().stream(Conversation.ask(PROMPT), sampling):
        if isinstance(event, Token):
            certain += bool(constraint.forced)
            constraint.push(event.id)
    return certain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", metavar="SHAPE")
    parser.add_argument("--quantize", choices=["int4", "int8"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, default=32)
    asked = parser.parse_args()
    if asked.random:
        from tests.benchmarks.random_server import RandomEngine

        engine: Engine = RandomEngine(asked.random, asked.device, "auto", asked.quantize)
    else:
        engine = load("sketch", device="cpu", quantize=asked.quantize)
    # Free answers must not end early either: the end becomes a token that is hardly ever chosen.
    engine.model.eos = frozenset({engine.processor.tokenizer.special_ids["<|begin_of_text|>"]})

    compare("one answer", lambda: alone(engine, asked.tokens, None), lambda: alone(engine, asked.tokens, free_list(0)))
    grammars: list[Grammar | None] = [free_list(number) for number in range(asked.rows)]
    compare(
        f"{asked.rows} answers",
        lambda: together(engine, asked.tokens, [None] * asked.rows),
        lambda: together(engine, asked.tokens, grammars),
    )
    compare(
        "one answer, long names",
        lambda: alone(engine, asked.tokens, None),
        lambda: alone(engine, asked.tokens, named_list()),
    )
    print(f"certain tokens of long names: {certain_tokens(engine, asked.tokens)} of {asked.tokens}")


if __name__ == "__main__":
    main()
