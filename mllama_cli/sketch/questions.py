"""Questions about one picture. Each builder gives a question whose answer the scene settles, or None if it cannot."""

import random
from collections.abc import Callable
from typing import Any

from mllama_cli.sketch import answers, phrases
from mllama_cli.sketch.asking import Asked
from mllama_cli.sketch.language import PLACES, Ref, article, expand, named, plural, spoken
from mllama_cli.sketch.palette import COLOURS
from mllama_cli.sketch.scene import COMPACT, SHAPES, Shape
from mllama_cli.sketch.view import OPPOSITE, View

Builder = Callable[[random.Random, View], Asked | None]

CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = {
    "left": ("left of", "leftmost", "to the left"),
    "right": ("right of", "rightmost", "to the right"),
    "top": ("above", "topmost", "up"),
    "bottom": ("below", "lowest", "down"),
}


def ask_describe(rng: random.Random, view: View) -> Asked | None:
    facts: dict[str, Any] = {"kind": "caption", "groups": [list(group) for group in view.groups]}
    draw = rng.random()
    plain_text = view.scene.lettering is None
    if draw < 0.15 and plain_text and (ordered := view.left_to_right()):
        return Asked(expand(rng.choice(phrases.LIST), rng), answers.in_order(ordered), {**facts, "kind": "list"})
    if draw < 0.30 and plain_text and (pairs := view.by_zone()):
        places = {"places": [(shape.name, zone) for shape, zone in pairs]}
        question = expand(rng.choice(phrases.DETAIL), rng)
        return Asked(question, answers.with_places(pairs), {**facts, "kind": "detail", **places})
    topic = (view.shapes[0].colour, view.shapes[0].kind) if len(view.shapes) == 1 else None
    if view.scene.lettering is not None:
        facts["text"] = view.scene.lettering.text.replace("\n", " ")
    question = expand(rng.choice(phrases.DESCRIBE), rng)
    return Asked(question, answers.caption(view), facts, topic)


def ask_count(rng: random.Random, view: View) -> Asked | None:
    ref = _some_ref(rng, view, missing=0.13)
    thing = plural(spoken(rng, ref))
    if view.scene.lettering is not None and ref[1] is None:
        thing = plural(named(ref))  # text is a thing, but no shape
    number = len(view.matching(ref))
    question = expand(rng.choice(phrases.COUNT), rng, things=thing)
    return Asked(
        question, answers.count(number, ref), {"kind": "count", "ref": ref, "count": number}, _topic(ref, view)
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
        return _absent(rng, (None, _missing_kind(rng, view)), phrases.COLOUR)
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
        return _absent(rng, (rng.choice(missing), None), phrases.SHAPE)
    matches = view.matching((colour, None))
    groups = [(sum(s.kind == kind for s in matches), kind) for kind in SHAPES if any(s.kind == kind for s in matches)]
    question = expand(rng.choice(phrases.SHAPE), rng, colour=colour, one=rng.choice(("one", "object", "thing")))
    topic: Ref | None = (colour, matches[0].kind) if len(matches) == 1 else None
    facts = {"kind": "shape", "colour": colour, "groups": [list(group) for group in groups]}
    return Asked(question, answers.shapes_of(colour, groups), facts, topic)


def ask_where(rng: random.Random, view: View) -> Asked | None:
    draw, lettering = rng.random(), view.scene.lettering
    if lettering is not None and (draw < 0.5 or not view.shapes):
        zone = view.zone(lettering.x, lettering.y)
        if zone is None:
            return None
        word = rng.choice(("text", "text", "word", "writing", "lettering"))
        question = expand(rng.choice(phrases.WHERE), rng, thing=word)
        return Asked(question, answers.where("text", zone), {"kind": "where", "of": "text", "zone": zone})
    if draw < 0.08:
        return _absent(rng, _missing_ref(rng, view), phrases.WHERE)
    if draw < 0.30 and lettering is None:
        return _ask_place(rng, view)
    shape = _choose(rng, view)
    if shape is None:
        return None
    refs, zone = view.unique_refs(shape), view.zone_of(shape)
    if not refs:
        ref: Ref = rng.choice(((None, shape.kind), (shape.colour, shape.kind)))
        if rng.random() > 0.3:
            return None
        question = expand(rng.choice(phrases.WHERE), rng, thing=spoken(rng, ref))
        number = len(view.matching(ref))
        return Asked(question, answers.several(number, ref), {"kind": "count", "ref": ref, "count": number})
    if zone is None:
        return None
    ref = rng.choice(refs)
    full: Ref = (shape.colour, shape.kind) if ref[1] is None else ref
    question = expand(rng.choice(phrases.WHERE), rng, thing=spoken(rng, ref))
    facts: dict[str, Any] = {"kind": "where", "of": shape.name, "zone": zone}
    return Asked(question, answers.where(named(full), zone), facts, ref)


def _ask_place(rng: random.Random, view: View) -> Asked | None:
    """What is in the top left, in the middle, on the left?"""
    if rng.random() < 0.55:
        zone = rng.choice((*CORNERS, "middle"))
        zones = [view.zone_of(shape) for shape in view.shapes]
        inside = [shape for shape, its in zip(view.shapes, zones, strict=True) if its == zone]
        if None in zones or len(inside) > 1 or (not inside and rng.random() < 0.6):
            return None
        template = rng.choice(phrases.AT_MIDDLE if zone == "middle" else phrases.AT_CORNER)
        question, found = expand(template, rng, zone=zone), inside[0] if inside else None
    else:
        zone = rng.choice(list(SIDES))
        relation, most, toward = SIDES[zone]
        found = view.outermost(relation)
        if found is None or len(view.shapes) < 2:
            return None
        question = expand(rng.choice(phrases.AT_SIDE), rng, side=PLACES[zone], most=most, toward=toward)
    facts: dict[str, Any] = {"kind": "place", "zone": zone, "object": found.name if found else None}
    topic: Ref | None = (
        (found.colour, found.kind) if found and len(view.matching((found.colour, found.kind))) == 1 else None
    )
    return Asked(question, answers.at_zone(found, zone), facts, topic)


def ask_exists(rng: random.Random, view: View) -> Asked | None:
    ref = _missing_ref(rng, view) if not view.shapes or rng.random() < 0.5 else _some_ref(rng, view, missing=0, all_=0)
    thing, number = spoken(rng, ref), len(view.matching(ref))
    in_it = expand(phrases.IN_IT, rng)
    question = expand(rng.choice(phrases.EXISTS), rng, a_thing=article(thing), things=plural(thing), in_it=in_it)
    facts: dict[str, Any] = {"kind": "exists", "ref": ref, "count": number}
    return Asked(question, answers.exists(number, ref), facts, _topic(ref, view))


def ask_compare(rng: random.Random, view: View) -> Asked | None:
    if rng.random() < 0.4:
        biggest = rng.random() < 0.6
        shape = view.extreme(biggest)
        if shape is None:
            return None
        most = rng.choice(
            ("biggest", "largest", "biggest", "hugest") if biggest else ("smallest", "smallest", "tiniest", "littlest")
        )
        question = expand(rng.choice(phrases.EXTREME), rng, most=most)
        facts: dict[str, Any] = {"kind": "extreme", "biggest": biggest, "object": shape.name}
        topic: Ref | None = (shape.colour, shape.kind) if len(view.matching((shape.colour, shape.kind))) == 1 else None
        return Asked(question, answers.extreme(shape, biggest), facts, topic)
    pair = _pair(rng, view)
    if pair is None:
        return None
    (one, one_ref), (other, other_ref) = pair
    if rng.random() < 0.12:
        missing = _missing_ref(rng, view)
        if missing[1] in COMPACT:
            question = _compare_question(rng, one_ref, missing, rng.choice(("bigger", "smaller")))
            return Asked(question, answers.absent(missing), {"kind": "absent", "ref": missing})
    bigger = view.bigger(one, other)
    if bigger is None:
        return None
    more = rng.choice(("bigger", "smaller"))
    truth = bigger is (more == "bigger")
    names = named(_full(one, one_ref)), named(_full(other, other_ref))
    if rng.random() < 0.5:
        question = _compare_question(rng, one_ref, other_ref, more)
        winner = names[0] if truth else names[1]
        return Asked(question, f"The {winner} is {more}.", {"kind": "bigger", "winner": winner, "more": more})
    said = rng.choice(("bigger", "larger")) if more == "bigger" else more
    question = expand(
        rng.choice(phrases.IS_BIGGER), rng, one=spoken(rng, one_ref), other=spoken(rng, other_ref), more=said
    )
    real = "bigger" if bigger else "smaller"
    answer = f"{'Yes' if truth else 'No'}, the {names[0]} is {real} than the {names[1]}."
    return Asked(question, answer, {"kind": "is bigger", "yes": truth, "one": one.name, "other": other.name})


def _compare_question(rng: random.Random, one: Ref, other: Ref, more: str) -> str:
    said = rng.choice(("bigger", "larger", "bigger", "greater")) if more == "bigger" else more
    return expand(rng.choice(phrases.WHICH_BIGGER), rng, one=spoken(rng, one), other=spoken(rng, other), more=said)


def ask_relation(rng: random.Random, view: View) -> Asked | None:
    shape = _choose(rng, view)
    if shape is None or len(view.shapes) < 2 or not (refs := view.unique_refs(shape)):
        return None
    ref, relation = rng.choice(refs), rng.choice(list(OPPOSITE))
    said = expand(phrases.SAID_RELATION[relation], rng)
    name = named(_full(shape, ref))
    if rng.random() < 0.07:
        missing = _missing_ref(rng, view)
        question = expand(rng.choice(phrases.RELATION), rng, relation=said, other=spoken(rng, missing))
        return Asked(question, answers.absent(missing), {"kind": "absent", "ref": missing})
    others = [other for other in view.shapes if other is not shape]
    if rng.random() < 0.4:
        one = rng.choice(others)
        one_refs, truth = view.unique_refs(one), view.stands(one, relation, shape)
        if not one_refs or truth is None:
            return None
        one_ref = rng.choice(one_refs)
        question = expand(
            rng.choice(phrases.IS_RELATED), rng, one=spoken(rng, one_ref), relation=said, other=spoken(rng, ref)
        )
        real = relation if truth else OPPOSITE[relation]
        answer = answers.relation(named(_full(one, one_ref)), real, name, truth)
        return Asked(question, answer, {"kind": "is related", "yes": truth, "relation": real})
    truths = [view.stands(other, relation, shape) for other in others]
    if None in truths or sum(bool(truth) for truth in truths) > 1:
        return None
    found = next((other for other, truth in zip(others, truths, strict=True) if truth), None)
    if found is None and rng.random() < 0.65:
        return None
    question = expand(rng.choice(phrases.RELATION), rng, relation=said, other=spoken(rng, ref))
    answer = answers.relation(found.name, relation, name) if found else answers.nothing_there(relation, name)
    facts: dict[str, Any] = {
        "kind": "relation",
        "relation": relation,
        "object": found.name if found else None,
        "other": name,
    }
    topic: Ref | None = (
        (found.colour, found.kind) if found and len(view.matching((found.colour, found.kind))) == 1 else None
    )
    return Asked(question, answer, facts, topic)


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


def _choose(rng: random.Random, view: View) -> Shape | None:
    """A shape to ask about, rather one that has a name of its own."""
    own = [shape for shape in view.shapes if view.unique_refs(shape)]
    if own and rng.random() < 0.9:
        return rng.choice(own)
    return rng.choice(view.shapes) if view.shapes else None


def _pair(rng: random.Random, view: View) -> tuple[tuple[Shape, Ref], tuple[Shape, Ref]] | None:
    own = [shape for shape in view.shapes if shape.kind in COMPACT and view.unique_refs(shape)]
    if len(own) < 2:
        return None
    one, other = rng.sample(own, 2)
    return (one, rng.choice(view.unique_refs(one))), (other, rng.choice(view.unique_refs(other)))


def _full(shape: Shape, ref: Ref) -> Ref:
    """How an answer names what a question named: "the red one" becomes "the red star"."""
    return (shape.colour, shape.kind) if ref[1] is None else ref


def _topic(ref: Ref, view: View) -> Ref | None:
    return ref if len(view.matching(ref)) == 1 and ref[1] is not None else None


def _some_ref(rng: random.Random, view: View, missing: float, all_: float = 0.2) -> Ref:
    """Something to count or look for: all, a shape, a colour or both; ``missing`` of them are not there."""
    if not view.shapes or rng.random() < missing:
        return (None, None) if rng.random() < all_ / 2 else _missing_ref(rng, view)
    shape, draw = rng.choice(view.shapes), rng.random()
    if rng.random() < 0.35:  # what there is most of, lest the answer be 1 nearly always
        shape = max(view.shapes, key=lambda s: len(view.matching((None, s.kind))))
    if draw < all_:
        return (None, None)
    if draw < all_ + (1 - all_) * 0.45:
        return (None, shape.kind)
    return (shape.colour, None) if draw < all_ + (1 - all_) * 0.68 else (shape.colour, shape.kind)


def _missing_kind(rng: random.Random, view: View) -> str:
    return rng.choice([kind for kind in SHAPES if kind not in view.kinds])


def _missing_ref(rng: random.Random, view: View) -> Ref:
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
    return (None if rng.random() < 0.7 else rng.choice(COLOURS), _missing_kind(rng, view))


def _absent(rng: random.Random, ref: Ref, templates: tuple[str, ...]) -> Asked:
    """A question that takes for granted what is not there."""
    thing = spoken(rng, ref)
    slots = {"thing": thing, "things": plural(thing), "one": "thing", "colour": ref[0] or ""}
    return Asked(expand(rng.choice(templates), rng, **slots), answers.absent(ref), {"kind": "absent", "ref": ref})
