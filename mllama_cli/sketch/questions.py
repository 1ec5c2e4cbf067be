"""Questions about one picture. Each builder gives a question whose answer the scene settles, or None if it cannot."""

import random
from collections.abc import Callable
from typing import Any

from mllama_cli.sketch import answers, phrases
from mllama_cli.sketch.asking import Asked
from mllama_cli.sketch.language import Ref, article, expand, named, plural, spoken
from mllama_cli.sketch.palette import COLOURS
from mllama_cli.sketch.places import ask_compare, ask_relation, ask_where
from mllama_cli.sketch.referring import ask_absent, missing_kind, missing_ref, some_ref, topic_of
from mllama_cli.sketch.scene import SHAPES
from mllama_cli.sketch.view import View

Builder = Callable[[random.Random, View], Asked | None]


def ask_describe(rng: random.Random, view: View) -> Asked | None:
    facts: dict[str, Any] = {"kind": "caption", "groups": [list(group) for group in view.groups]}
    draw = rng.random()
    plain_text = view.scene.lettering is None
    if draw < 0.15 and plain_text and (ordered := view.left_to_right()):
        return Asked(expand(rng.choice(phrases.LIST), rng), answers.in_order(ordered), {**facts, "kind": "list"})
    if draw < 0.30 and plain_text and (pairs := view.by_zone(view.shapes)):
        places = {"places": [(shape.name, zone) for shape, zone in pairs]}
        question = expand(rng.choice(phrases.DETAIL), rng)
        return Asked(question, answers.with_places(pairs), {**facts, "kind": "detail", **places})
    topic = (view.shapes[0].colour, view.shapes[0].kind) if len(view.shapes) == 1 else None
    if view.scene.lettering is not None:
        facts["text"] = view.scene.lettering.text.replace("\n", " ")
    question = expand(rng.choice(phrases.DESCRIBE), rng)
    return Asked(question, answers.caption(view), facts, topic)


def ask_count(rng: random.Random, view: View) -> Asked | None:
    if view.shapes and view.scene.lettering is None and rng.random() < 0.05:
        number = len(view.colours)
        answer = f"There {'is 1 colour' if number == 1 else f'are {number} colours'}."
        return Asked(
            expand(rng.choice(phrases.COUNT_COLOURS), rng), answer, {"kind": "count", "of": "colours", "count": number}
        )
    ref = some_ref(rng, view, missing=0.13)
    thing = plural(spoken(rng, ref))
    if view.scene.lettering is not None and ref[1] is None:
        thing = plural(named(ref))  # text is a thing, but no shape
    number = len(view.matching(ref))
    question = expand(rng.choice(phrases.COUNT), rng, things=thing)
    return Asked(
        question, answers.count(number, ref), {"kind": "count", "ref": ref, "count": number}, topic_of(ref, view)
    )


def ask_colour(rng: random.Random, view: View) -> Asked | None:
    draw, scene = rng.random(), view.scene
    if draw < 0.08 and scene.background.colour is not None:
        question = expand(rng.choice(phrases.GROUND_COLOUR), rng)
        name = scene.background.colour
        return Asked(question, answers.colour("background", [name], 1), {"kind": "colour", "colours": [name]})
    if scene.lettering is not None and (draw < 0.4 or not view.shapes):
        question = expand(rng.choice(phrases.TEXT_COLOUR), rng)
        name = scene.lettering.colour
        return Asked(question, answers.colour("text", [name], 1), {"kind": "colour", "colours": [name]})
    if draw < 0.16 and 0 < len(view.colours) <= 4 and scene.lettering is None:
        question = expand(rng.choice(phrases.ALL_COLOURS), rng)
        return Asked(question, answers.all_colours(view.colours), {"kind": "colour", "colours": view.colours})
    if draw < 0.26 and len(view.kinds) < len(SHAPES):
        return ask_absent(rng, (None, missing_kind(rng, view)), phrases.COLOUR)
    if not view.kinds:
        return None
    kind = rng.choice(view.kinds)
    matches = view.matching((None, kind))
    colours = [name for name in COLOURS if any(shape.colour == name for shape in matches)]
    many = len(matches) > 1 and rng.random() < 0.8
    thing = spoken(rng, (None, kind))
    question = expand(
        rng.choice(phrases.COLOURS_OF if many else phrases.COLOUR), rng, thing=thing, things=plural(thing)
    )
    answer = answers.colour(kind, colours, len(matches))
    topic: Ref | None = (None, kind) if len(matches) == 1 else None
    return Asked(question, answer, {"kind": "colour", "of": kind, "colours": colours}, topic)


def ask_shape(rng: random.Random, view: View) -> Asked | None:
    draw = rng.random()
    arrows = view.matching((None, "arrow"))
    if arrows and draw < 0.35 and (refs := [ref for ref in view.unique_refs(arrows[0]) if ref[1]]):
        ref = rng.choice(refs)
        question = expand(rng.choice(phrases.ARROW), rng, thing=spoken(rng, ref))
        facts: dict[str, Any] = {"kind": "direction", "direction": arrows[0].direction}
        return Asked(question, f"The {named(ref)} points {arrows[0].direction}.", facts, ref)
    if len(view.shapes) == 1 and draw < 0.6 and view.scene.lettering is None:
        kind = view.shapes[0].kind
        question = expand(rng.choice(phrases.ONLY_SHAPE), rng)
        return Asked(question, f"It is {article(kind)}.", {"kind": "shape", "groups": [[1, kind]]}, (None, kind))
    if not view.colours:
        return None
    colour = rng.choice(view.colours)
    if draw > 0.92:
        missing = [name for name in COLOURS if name not in view.colours]
        return ask_absent(rng, (rng.choice(missing), None), phrases.SHAPE)
    matches = view.matching((colour, None))
    groups = [(sum(s.kind == kind for s in matches), kind) for kind in SHAPES if any(s.kind == kind for s in matches)]
    question = expand(rng.choice(phrases.SHAPE), rng, colour=colour, one=rng.choice(("one", "object", "thing")))
    topic: Ref | None = (colour, matches[0].kind) if len(matches) == 1 else None
    facts = {"kind": "shape", "colour": colour, "groups": [list(group) for group in groups]}
    return Asked(question, answers.shapes_of(colour, groups), facts, topic)


def ask_exists(rng: random.Random, view: View) -> Asked | None:
    ref = missing_ref(rng, view) if not view.shapes or rng.random() < 0.5 else some_ref(rng, view, missing=0, all_=0)
    thing, number = spoken(rng, ref), len(view.matching(ref))
    in_it = expand(phrases.IN_IT, rng)
    question = expand(rng.choice(phrases.EXISTS), rng, a_thing=article(thing), things=plural(thing), in_it=in_it)
    facts: dict[str, Any] = {"kind": "exists", "ref": ref, "count": number}
    return Asked(question, answers.exists(number, ref), facts, topic_of(ref, view))


def ask_read(rng: random.Random, view: View) -> Asked | None:
    lettering = view.scene.lettering
    if lettering is None and (rng.random() < 0.8 or view.scene.background.axes):
        return None
    question = expand(rng.choice(phrases.READ), rng)
    text = lettering.text.replace("\n", " ") if lettering else None
    return Asked(question, answers.reads(lettering), {"kind": "read", "text": text})


BUILDERS: dict[str, Builder] = {
    "describe": ask_describe,
    "count": ask_count,
    "colour": ask_colour,
    "shape": ask_shape,
    "where": ask_where,
    "compare": ask_compare,
    "exists": ask_exists,
    "relation": ask_relation,
    "read": ask_read,
}
