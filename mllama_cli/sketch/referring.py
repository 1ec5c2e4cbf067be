"""Choosing what to ask about: things that are there, things that are not, and names that mean one of them."""

import random

from mllama_cli.sketch import answers
from mllama_cli.sketch.asking import Asked
from mllama_cli.sketch.language import Ref, expand, plural, spoken
from mllama_cli.sketch.palette import COLOURS
from mllama_cli.sketch.scene import COMPACT, SHAPES, Shape
from mllama_cli.sketch.view import View


def choose(rng: random.Random, view: View) -> Shape | None:
    """A shape to ask about, rather one that has a name of its own."""
    own = [shape for shape in view.shapes if view.unique_refs(shape)]
    if own and rng.random() < 0.9:
        return rng.choice(own)
    return rng.choice(view.shapes) if view.shapes else None


def choose_pair(rng: random.Random, view: View) -> tuple[tuple[Shape, Ref], tuple[Shape, Ref]] | None:
    own = [shape for shape in view.shapes if shape.kind in COMPACT and view.unique_refs(shape)]
    if len(own) < 2:
        return None
    one, other = rng.sample(own, 2)
    return (one, rng.choice(view.unique_refs(one))), (other, rng.choice(view.unique_refs(other)))


def full_name(shape: Shape, ref: Ref) -> Ref:
    """How an answer names what a question named: "the red one" becomes "the red star"."""
    return (shape.colour, shape.kind) if ref[1] is None else ref


def topic_of(ref: Ref, view: View) -> Ref | None:
    return ref if len(view.matching(ref)) == 1 and ref[1] is not None else None


def some_ref(rng: random.Random, view: View, missing: float, all_: float = 0.2) -> Ref:
    """Something to count or look for: all, a shape, a colour or both; ``missing`` of them are not there."""
    if not view.shapes or rng.random() < missing:
        return (None, None) if rng.random() < all_ / 2 else missing_ref(rng, view)
    shape, draw = rng.choice(view.shapes), rng.random()
    if rng.random() < 0.35:  # what there is most of, lest the answer be 1 nearly always
        shape = max(view.shapes, key=lambda s: len(view.matching((None, s.kind))))
    if draw < all_:
        return (None, None)
    if draw < all_ + (1 - all_) * 0.45:
        return (None, shape.kind)
    return (shape.colour, None) if draw < all_ + (1 - all_) * 0.68 else (shape.colour, shape.kind)


def missing_kind(rng: random.Random, view: View) -> str:
    return rng.choice([kind for kind in SHAPES if kind not in view.kinds])


def missing_ref(rng: random.Random, view: View) -> Ref:
    """Something that is not there: often near to what is, as a red circle among blue circles and red stars."""
    if view.shapes and rng.random() < 0.5:
        colour, kind = rng.choice(view.colours), rng.choice(view.kinds)
        if rng.random() < 0.5:
            colour = rng.choice(COLOURS)
        elif rng.random() < 0.4:
            kind = rng.choice(SHAPES)
        if not view.matching((colour, kind)):
            return (colour, kind)
    if rng.random() < 0.3:
        absent = [name for name in COLOURS if name not in view.colours]
        return (rng.choice(absent), None)
    return (None if rng.random() < 0.7 else rng.choice(COLOURS), missing_kind(rng, view))


def ask_absent(rng: random.Random, ref: Ref, templates: tuple[str, ...]) -> Asked:
    """A question that takes for granted what is not there."""
    thing = spoken(rng, ref)
    slots = {"thing": thing, "things": plural(thing), "one": "thing", "colour": ref[0] or ""}
    return Asked(expand(rng.choice(templates), rng, **slots), answers.absent(ref), {"kind": "absent", "ref": ref})
