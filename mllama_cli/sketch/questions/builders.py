"""Questions about one image. Each builder returns a question that the scene answers, or None if there is none."""

import random
from collections.abc import Callable
from typing import Any

from mllama_cli.sketch.language import phrases
from mllama_cli.sketch.language.wording import Ref, article, expand, named, plural, spoken
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.questions.referring import ask_absent, missing_kind, missing_ref, some_ref, topic_of
from mllama_cli.sketch.questions.scene_queries import SceneQueries
from mllama_cli.sketch.questions.spatial_questions import ask_compare, ask_relation, ask_where
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import SHAPES

Builder = Callable[[random.Random, SceneQueries], QA | None]


def ask_describe(rng: random.Random, queries: SceneQueries) -> QA:
    facts: dict[str, Any] = {"kind": "caption", "groups": [list(group) for group in queries.groups]}
    draw = rng.random()
    plain_text = queries.scene.lettering is None
    if draw < 0.15 and plain_text and (ordered := queries.left_to_right()):
        return QA(expand(rng.choice(phrases.LIST), rng), answers.in_order(ordered), {**facts, "kind": "list"})
    if draw < 0.30 and plain_text and (pairs := queries.by_zone(queries.shapes)):
        places = {"places": [(shape.name, zone) for shape, zone in pairs]}
        question = expand(rng.choice(phrases.DETAIL), rng)
        return QA(question, answers.with_places(pairs), {**facts, "kind": "detail", **places})
    topic = (queries.shapes[0].colour, queries.shapes[0].kind) if len(queries.shapes) == 1 else None
    if queries.scene.lettering is not None:
        facts["text"] = queries.scene.lettering.text.replace("\n", " ")
    question = expand(rng.choice(phrases.DESCRIBE), rng)
    return QA(question, answers.caption(queries), facts, topic)


def ask_count(rng: random.Random, queries: SceneQueries) -> QA | None:
    if queries.shapes and queries.scene.lettering is None and rng.random() < 0.05:
        number = len(queries.colours)
        answer = f"There {'is 1 colour' if number == 1 else f'are {number} colours'}."
        return QA(
            expand(rng.choice(phrases.COUNT_COLOURS), rng), answer, {"kind": "count", "of": "colours", "count": number}
        )
    ref = some_ref(rng, queries, missing=0.13)
    thing = plural(spoken(rng, ref))
    if queries.scene.lettering is not None and ref[1] is None:
        thing = plural(named(ref))  # text is a thing but not a shape
    number = len(queries.matching(ref))
    question = expand(rng.choice(phrases.COUNT), rng, things=thing)
    return QA(
        question, answers.count(number, ref), {"kind": "count", "ref": ref, "count": number}, topic_of(ref, queries)
    )


def ask_colour(rng: random.Random, queries: SceneQueries) -> QA | None:
    draw, scene = rng.random(), queries.scene
    if draw < 0.08 and scene.background.colour is not None:
        question = expand(rng.choice(phrases.GROUND_COLOUR), rng)
        name = scene.background.colour
        return QA(question, answers.colour("background", [name], 1), {"kind": "colour", "colours": [name]})
    if scene.lettering is not None and (draw < 0.4 or not queries.shapes):
        question = expand(rng.choice(phrases.TEXT_COLOUR), rng)
        name = scene.lettering.colour
        return QA(question, answers.colour("text", [name], 1), {"kind": "colour", "colours": [name]})
    if draw < 0.16 and 0 < len(queries.colours) <= 4 and scene.lettering is None:
        question = expand(rng.choice(phrases.ALL_COLOURS), rng)
        return QA(question, answers.all_colours(queries.colours), {"kind": "colour", "colours": queries.colours})
    if draw < 0.26 and len(queries.kinds) < len(SHAPES):
        return ask_absent(rng, (None, missing_kind(rng, queries)), phrases.COLOUR)
    if not queries.kinds:
        return None
    kind = rng.choice(queries.kinds)
    matches = queries.matching((None, kind))
    colours = [name for name in COLOURS if any(shape.colour == name for shape in matches)]
    many = len(matches) > 1 and rng.random() < 0.8
    thing = spoken(rng, (None, kind))
    question = expand(
        rng.choice(phrases.COLOURS_OF if many else phrases.COLOUR), rng, thing=thing, things=plural(thing)
    )
    answer = answers.colour(kind, colours, len(matches))
    topic: Ref | None = (None, kind) if len(matches) == 1 else None
    return QA(question, answer, {"kind": "colour", "of": kind, "colours": colours}, topic)


def ask_shape(rng: random.Random, queries: SceneQueries) -> QA | None:
    draw = rng.random()
    arrows = queries.matching((None, "arrow"))
    if arrows and draw < 0.35 and (refs := [ref for ref in queries.unique_refs(arrows[0]) if ref[1]]):
        ref = rng.choice(refs)
        question = expand(rng.choice(phrases.ARROW), rng, thing=spoken(rng, ref))
        facts: dict[str, Any] = {"kind": "direction", "direction": arrows[0].direction}
        return QA(question, f"The {named(ref)} points {arrows[0].direction}.", facts, ref)
    if len(queries.shapes) == 1 and draw < 0.6 and queries.scene.lettering is None:
        kind = queries.shapes[0].kind
        question = expand(rng.choice(phrases.ONLY_SHAPE), rng)
        return QA(question, f"It is {article(kind)}.", {"kind": "shape", "groups": [[1, kind]]}, (None, kind))
    if not queries.colours:
        return None
    colour = rng.choice(queries.colours)
    if draw > 0.92:
        missing = [name for name in COLOURS if name not in queries.colours]
        return ask_absent(rng, (rng.choice(missing), None), phrases.SHAPE)
    matches = queries.matching((colour, None))
    groups = [(sum(s.kind == kind for s in matches), kind) for kind in SHAPES if any(s.kind == kind for s in matches)]
    question = expand(rng.choice(phrases.SHAPE), rng, colour=colour, one=rng.choice(("one", "object", "thing")))
    topic: Ref | None = (colour, matches[0].kind) if len(matches) == 1 else None
    facts = {"kind": "shape", "colour": colour, "groups": [list(group) for group in groups]}
    return QA(question, answers.shapes_of(colour, groups), facts, topic)


def ask_exists(rng: random.Random, queries: SceneQueries) -> QA | None:
    ref = (
        missing_ref(rng, queries)
        if not queries.shapes or rng.random() < 0.5
        else some_ref(rng, queries, missing=0, all_=0)
    )
    thing, number = spoken(rng, ref), len(queries.matching(ref))
    in_it = expand(phrases.IN_IT, rng)
    question = expand(rng.choice(phrases.EXISTS), rng, a_thing=article(thing), things=plural(thing), in_it=in_it)
    facts: dict[str, Any] = {"kind": "exists", "ref": ref, "count": number}
    return QA(question, answers.exists(number, ref), facts, topic_of(ref, queries))


def ask_read(rng: random.Random, queries: SceneQueries) -> QA | None:
    lettering = queries.scene.lettering
    if lettering is None and (rng.random() < 0.8 or queries.scene.background.axes):
        return None
    question = expand(rng.choice(phrases.READ), rng)
    text = lettering.text.replace("\n", " ") if lettering else None
    return QA(question, answers.reads(lettering), {"kind": "read", "text": text})


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
