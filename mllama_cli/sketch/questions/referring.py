"""Referring expressions: what to ask about, present or absent, and names that mean exactly one thing."""

import random

from mllama_cli.sketch.language.wording import Ref, expand, plural, spoken
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.questions.scene_queries import SceneQueries
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import COMPACT, SHAPES, Shape


def choose(rng: random.Random, queries: SceneQueries) -> Shape | None:
    """Choose a shape to ask about, preferably one with a unique name."""
    own = [shape for shape in queries.shapes if queries.unique_refs(shape)]
    if own and rng.random() < 0.9:
        return rng.choice(own)
    return rng.choice(queries.shapes) if queries.shapes else None


def choose_pair(rng: random.Random, queries: SceneQueries) -> tuple[tuple[Shape, Ref], tuple[Shape, Ref]] | None:
    own = [shape for shape in queries.shapes if shape.kind in COMPACT and queries.unique_refs(shape)]
    if len(own) < 2:
        return None
    one, other = rng.sample(own, 2)
    return (one, rng.choice(queries.unique_refs(one))), (other, rng.choice(queries.unique_refs(other)))


def full_name(shape: Shape, ref: Ref) -> Ref:
    """Return how an answer names what a question named: "the red one" becomes "the red star"."""
    return (shape.colour, shape.kind) if ref[1] is None else ref


def topic_of(ref: Ref, queries: SceneQueries) -> Ref | None:
    return ref if len(queries.matching(ref)) == 1 and ref[1] is not None else None


def some_ref(rng: random.Random, queries: SceneQueries, missing: float, all_: float = 0.2) -> Ref:
    """Return something to count or look for: all, a shape, a colour or both; absent with probability ``missing``."""
    if not queries.shapes or rng.random() < missing:
        return (None, None) if rng.random() < all_ / 2 else missing_ref(rng, queries)
    shape, draw = rng.choice(queries.shapes), rng.random()
    if rng.random() < 0.35:  # the most frequent shape: otherwise nearly every answer would be 1
        shape = max(queries.shapes, key=lambda s: len(queries.matching((None, s.kind))))
    if draw < all_:
        return (None, None)
    if draw < all_ + (1 - all_) * 0.45:
        return (None, shape.kind)
    return (shape.colour, None) if draw < all_ + (1 - all_) * 0.68 else (shape.colour, shape.kind)


def missing_kind(rng: random.Random, queries: SceneQueries) -> str:
    return rng.choice([kind for kind in SHAPES if kind not in queries.kinds])


def missing_ref(rng: random.Random, queries: SceneQueries) -> Ref:
    """Return something absent, often close to what is there: a red circle among blue circles and red stars."""
    if queries.shapes and rng.random() < 0.5:
        colour, kind = rng.choice(queries.colours), rng.choice(queries.kinds)
        if rng.random() < 0.5:
            colour = rng.choice(COLOURS)
        elif rng.random() < 0.4:
            kind = rng.choice(SHAPES)
        if not queries.matching((colour, kind)):
            return (colour, kind)
    if rng.random() < 0.3:
        absent = [name for name in COLOURS if name not in queries.colours]
        return (rng.choice(absent), None)
    return (None if rng.random() < 0.7 else rng.choice(COLOURS), missing_kind(rng, queries))


def ask_absent(rng: random.Random, ref: Ref, templates: tuple[str, ...]) -> QA:
    """Ask a question that presupposes something absent."""
    thing = spoken(rng, ref)
    slots = {"thing": thing, "things": plural(thing), "one": "thing", "colour": ref[0] or ""}
    return QA(expand(rng.choice(templates), rng, **slots), answers.absent(ref), {"kind": "absent", "ref": ref})
