"""Measure how often the built-in model is right: ``python -m mllama_cli.sketch.evaluate``.

Held-out samples of every task go through the engine like a user's questions, greedily. The samples depend on their
seeds alone, so runs with other weights or formats can be compared in pairs (``--json``, ``--against``).
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from PIL import Image

from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine, load
from mllama_cli.sketch.questions.answers import LIMITS
from mllama_cli.sketch.questions.grading import caption_score, has_keywords, is_right
from mllama_cli.sketch.questions.samples import EVALUATION_SEEDS, TASKS, Sample, make_sample

GREEDY = Sampling(temperature=0, max_tokens=320)
LIMIT_QUESTIONS = ("Describe this image.", "What is in this picture?", "How many circles are there?")


@dataclass(frozen=True)
class Trial:
    """One question: its task, whether the answer was right, and what share of it (captions are scored by fact)."""

    task: str
    right: bool
    score: float
    question: str
    wanted: str
    said: str


def conversation_of(sample: Sample) -> Conversation:
    """Return a sample as a conversation for the engine: images as PNG files, everything but the last answer."""
    messages = []
    for turn in sample.messages:
        images = [_png(sample.images[index]) for index in turn.images]
        messages.append(Message(turn.role, (*images, TextPart(turn.text))))
    return Conversation(tuple(messages))


def grammar_of(sample: Sample) -> Grammar | None:
    return None if sample.schema is None else Grammar.schema(sample.schema)


def answers_to(
    engine: Engine, conversations: Iterable[Conversation], batch: int, grammars: Iterable[Grammar | None] = repeat(None)
) -> Iterator[str]:
    """Yield greedy answers, in order, each held to its grammar."""
    waiting = zip(conversations, grammars, strict=False)
    while group := list(islice(waiting, batch)):
        requests = [
            BatchRequest(key, engine.processor(talk), sampling=replace(GREEDY, grammar=grammar))
            for key, (talk, grammar) in enumerate(group)
        ]
        replies = {reply.key: reply for reply in run_batch(engine.model, requests)}
        for request in requests:
            reply = replies[request.key]
            if reply.error is not None:
                raise reply.error
            yield reply.text


def held_out(task: str, count: int, fonts: str | None = None) -> Iterator[Sample]:
    """Return the evaluation's samples of a task."""
    first = EVALUATION_SEEDS + TASKS.index(task) * (1 << 30)
    return (make_sample(first + number, task, fonts) for number in range(count))


def try_task(engine: Engine, task: str, count: int, batch: int, fonts: str | None = None) -> list[Trial]:
    samples = list(held_out(task, count, fonts))
    trials = []
    answers = answers_to(engine, map(conversation_of, samples), batch, map(grammar_of, samples))
    for sample, said in zip(samples, answers, strict=True):
        right = is_right(sample, said)
        score = caption_score(sample.answer, said) if sample.facts["kind"] == "caption" else float(right)
        trials.append(Trial(task, right, score, sample.question, sample.answer, said))
    return trials


def try_foreign(engine: Engine, folder: Path, batch: int) -> list[Trial]:
    """Ask about drawings by other programs: ``questions.json`` lists {images, question, task, keywords}."""
    items: list[dict[str, Any]] = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    asked = (
        Conversation.ask(
            item["question"], tuple(ImagePart((folder / name).read_bytes(), name) for name in item["images"])
        )
        for item in items
    )
    trials = []
    for item, said in zip(items, answers_to(engine, asked, batch), strict=True):
        right = has_keywords(said, item["keywords"])
        question = f"{', '.join(item['images'])}: {item['question']}"
        trials.append(Trial(item["task"], right, float(right), question, ", ".join(item["keywords"]), said))
    return trials


def try_limits(engine: Engine, pictures: Sequence[Path], batch: int) -> list[Trial]:
    """Ask about out-of-domain images: the right answer is to say so."""
    asked = [(path, question) for path in pictures for question in LIMIT_QUESTIONS]
    parts = {path: ImagePart(path.read_bytes(), path.name) for path in pictures}
    talks = (Conversation.ask(question, (parts[path],)) for path, question in asked)
    return [
        Trial("limits", said == LIMITS, float(said == LIMITS), f"{path.name}: {question}", LIMITS, said)
        for (path, question), said in zip(asked, answers_to(engine, talks, batch), strict=True)
    ]


def table(trials: Sequence[Trial]) -> list[tuple[str, int, float, float]]:
    """Return a row for each task in order of first appearance: name, questions, share right, mean score."""
    rows = []
    for task in dict.fromkeys(trial.task for trial in trials):
        mine = [trial for trial in trials if trial.task == task]
        right, score = (sum(getattr(t, name) for t in mine) / len(mine) for name in ("right", "score"))
        rows.append((task, len(mine), right, score))
    return rows


def in_pairs(before: Sequence[Trial], after: Sequence[Trial]) -> dict[str, tuple[int, int]]:
    """Return, by task, how many answers became wrong and how many right between two runs of the same questions."""
    changes: dict[str, tuple[int, int]] = {}
    for old, new in zip(before, after, strict=True):
        if (old.task, old.question, old.wanted) != (new.task, new.question, new.wanted):
            raise ValueError("the two runs did not ask the same questions")
        lost, won = changes.get(new.task, (0, 0))
        changes[new.task] = lost + (old.right and not new.right), won + (new.right and not old.right)
    return changes


def _png(image: Image.Image) -> ImagePart:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return ImagePart(buffer.getvalue(), "drawing.png")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("model", nargs="?", default="sketch", help="folder or name (default: the built-in model)")
    add("--samples", type=int, default=1000, help="held-out samples of each task")
    add("--tasks", nargs="+", default=list(TASKS), choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    add("--foreign", type=Path, help="instead: a folder of drawings by other programs, with questions.json")
    add("--limits", type=Path, nargs="+", metavar="PICTURE", help="instead: images that it should not know")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--batch", type=int, default=16, help="questions answered at once")
    add("--fonts", help="folder of additional fonts, as in training")
    add("--json", type=Path, metavar="FILE", help="write every question and answer")
    add("--against", type=Path, metavar="FILE", help="compare with the answers of another run's --json")
    add("--wrong", type=int, default=0, metavar="N", help="show N wrong answers of each task")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    engine = load(given.model, device=given.device, dtype=given.dtype, vision=True)
    if given.foreign:
        trials = try_foreign(engine, given.foreign, given.batch)
    elif given.limits:
        trials = try_limits(engine, given.limits, given.batch)
    else:
        trials = []
        for task in given.tasks:
            trials += try_task(engine, task, given.samples, given.batch, given.fonts)
            sys.stderr.write(f"{task}: {sum(t.right for t in trials if t.task == task)} of {given.samples} right\n")
    write = sys.stdout.write
    write("| task | questions | right | facts |\n|---|---|---|---|\n")
    for task, count, right, score in (*table(trials), ("all", *_overall(trials))):
        write(f"| {task} | {count} | {100 * right:.1f}% | {100 * score:.1f}% |\n")
    if given.against:
        before = [Trial(**entry) for entry in json.loads(given.against.read_text(encoding="utf-8"))]
        for task, (lost, won) in in_pairs(before, trials).items():
            write(f"{task}: {lost} became wrong, {won} became right\n")
    for task in dict.fromkeys(trial.task for trial in trials) if given.wrong else ():
        for trial in [t for t in trials if t.task == task and not t.right][: given.wrong]:
            write(f"{task}: {trial.question}\n  wanted: {trial.wanted}\n  said:   {trial.said}\n")
    if given.json:
        given.json.write_text(json.dumps([vars(trial) for trial in trials], ensure_ascii=False), encoding="utf-8")


def _overall(trials: Sequence[Trial]) -> tuple[int, float, float]:
    return len(trials), sum(t.right for t in trials) / len(trials), sum(t.score for t in trials) / len(trials)


if __name__ == "__main__":
    main()
