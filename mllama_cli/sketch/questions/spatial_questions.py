"""Questions about where things are, how they relate and which is bigger."""

import random
from typing import Any

from mllama_cli.sketch.language import phrases
from mllama_cli.sketch.language.wording import PLACES, Ref, expand, named, plural, spoken
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.questions.referring import ask_absent, choose, choose_pair, full_name, missing_ref, topic_of
from mllama_cli.sketch.questions.scene_queries import OPPOSITE, SceneQueries
from mllama_cli.sketch.scenes.scene import COMPACT

CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = {
    "left": ("left of", "leftmost", "to the left"),
    "right": ("right of", "rightmost", "to the right"),
    "top": ("above", "topmost", "up"),
    "bottom": ("below", "lowest", "down"),
}


def ask_where(rng: random.Random, queries: SceneQueries) -> QA | None:
    draw, lettering = rng.random(), queries.scene.lettering
    if lettering is not None and (draw < 0.5 or not queries.shapes):
        zone = queries.zone(lettering.x, lettering.y)
        if zone is None:
            return None
        word = rng.choice(("text", "text", "word", "writing", "lettering"))
        question = expand(rng.choice(phrases.WHERE), rng, thing=word)
        return QA(question, answers.where("text", zone), {"kind": "where", "of": "text", "zone": zone})
    if draw < 0.08:
        return ask_absent(rng, missing_ref(rng, queries), phrases.WHERE)
    if draw < 0.30 and lettering is None:
        return _ask_place(rng, queries)
    shape = choose(rng, queries)
    if shape is None:
        return None
    refs, zone = queries.unique_refs(shape), queries.zone_of(shape)
    if not refs:
        ref: Ref = rng.choice(((None, shape.kind), (shape.colour, shape.kind)))
        if rng.random() < 0.6:
            return _ask_where_all(rng, queries, ref)
        if rng.random() < 0.4:
            return None
        question = expand(rng.choice(phrases.WHERE), rng, thing=spoken(rng, ref))
        number = len(queries.matching(ref))
        return QA(question, answers.count(number, ref), {"kind": "count", "ref": ref, "count": number})
    if zone is None:
        return None
    ref = rng.choice(refs)
    full = full_name(shape, ref)
    question = expand(rng.choice(phrases.WHERE), rng, thing=spoken(rng, ref))
    facts: dict[str, Any] = {"kind": "where", "of": shape.name, "zone": zone}
    return QA(question, answers.where(named(full), zone), facts, ref)


def _ask_where_all(rng: random.Random, queries: SceneQueries, ref: Ref) -> QA | None:
    """Ask where two or three things of one name are, in reading order."""
    placed = queries.by_zone(queries.matching(ref))
    if placed is None or not 2 <= len(placed) <= 3:
        return None
    question = expand(rng.choice(phrases.WHERE_MANY), rng, things=plural(spoken(rng, ref)))
    zones = [zone for _, zone in placed]
    return QA(question, answers.where_all(named(ref), zones), {"kind": "where all", "ref": ref, "zones": zones})


def _ask_place(rng: random.Random, queries: SceneQueries) -> QA | None:
    """Ask what is in the top left, in the middle, on the left."""
    if rng.random() < 0.55:
        zone = rng.choice((*CORNERS, "middle"))
        zones = [queries.zone_of(shape) for shape in queries.shapes]
        inside = [shape for shape, its in zip(queries.shapes, zones, strict=True) if its == zone]
        if None in zones or len(inside) > 1 or (not inside and rng.random() < 0.6):
            return None
        template = rng.choice(phrases.AT_MIDDLE if zone == "middle" else phrases.AT_CORNER)
        question, found = expand(template, rng, zone=zone), inside[0] if inside else None
    else:
        zone = rng.choice(list(SIDES))
        relation, most, toward = SIDES[zone]
        found = queries.outermost(relation)
        if found is None or len(queries.shapes) < 2:
            return None
        question = expand(rng.choice(phrases.AT_SIDE), rng, side=PLACES[zone], most=most, toward=toward)
    facts: dict[str, Any] = {"kind": "place", "zone": zone, "object": found.name if found else None}
    topic = topic_of((found.colour, found.kind), queries) if found else None
    return QA(question, answers.at_zone(found, zone), facts, topic)


def ask_compare(rng: random.Random, queries: SceneQueries) -> QA | None:
    if rng.random() < 0.4:
        biggest = rng.random() < 0.6
        shape = queries.extreme(biggest)
        if shape is None:
            return None
        most = rng.choice(
            ("biggest", "largest", "biggest", "hugest") if biggest else ("smallest", "smallest", "tiniest", "littlest")
        )
        question = expand(rng.choice(phrases.EXTREME), rng, most=most)
        facts: dict[str, Any] = {"kind": "extreme", "biggest": biggest, "object": shape.name}
        return QA(question, answers.extreme(shape, biggest), facts, topic_of((shape.colour, shape.kind), queries))
    pair = choose_pair(rng, queries)
    if pair is None:
        return None
    (one, one_ref), (other, other_ref) = pair
    if rng.random() < 0.12:
        missing = missing_ref(rng, queries)
        if missing[1] in COMPACT:
            question = _compare_question(rng, one_ref, missing, rng.choice(("bigger", "smaller")))
            return QA(question, answers.absent(missing), {"kind": "absent", "ref": missing})
    bigger = queries.bigger(one, other)
    if bigger is None:
        return None
    more = rng.choice(("bigger", "smaller"))
    truth = bigger is (more == "bigger")
    names = named(full_name(one, one_ref)), named(full_name(other, other_ref))
    if rng.random() < 0.5:
        question = _compare_question(rng, one_ref, other_ref, more)
        winner = names[0] if truth else names[1]
        return QA(question, f"The {winner} is {more}.", {"kind": "bigger", "winner": winner, "more": more})
    said = rng.choice(("bigger", "larger")) if more == "bigger" else more
    question = expand(
        rng.choice(phrases.IS_BIGGER), rng, one=spoken(rng, one_ref), other=spoken(rng, other_ref), more=said
    )
    real = "bigger" if bigger else "smaller"
    answer = f"{'Yes' if truth else 'No'}, the {names[0]} is {real} than the {names[1]}."
    return QA(question, answer, {"kind": "is bigger", "yes": truth, "one": one.name, "other": other.name})


def _compare_question(rng: random.Random, one: Ref, other: Ref, more: str) -> str:
    said = rng.choice(("bigger", "larger", "bigger", "greater")) if more == "bigger" else more
    return expand(rng.choice(phrases.WHICH_BIGGER), rng, one=spoken(rng, one), other=spoken(rng, other), more=said)


def ask_relation(rng: random.Random, queries: SceneQueries) -> QA | None:
    shape = choose(rng, queries)
    if shape is None or len(queries.shapes) < 2 or not (refs := queries.unique_refs(shape)):
        return None
    ref, relation = rng.choice(refs), rng.choice(list(OPPOSITE))
    said = expand(phrases.SAID_RELATION[relation], rng)
    name = named(full_name(shape, ref))
    if rng.random() < 0.07:
        missing = missing_ref(rng, queries)
        question = expand(rng.choice(phrases.RELATION), rng, relation=said, other=spoken(rng, missing))
        return QA(question, answers.absent(missing), {"kind": "absent", "ref": missing})
    others = [other for other in queries.shapes if other is not shape]
    if rng.random() < 0.4:
        one = rng.choice(others)
        one_refs, truth = queries.unique_refs(one), queries.is_related(one, relation, shape)
        if not one_refs or truth is None:
            return None
        one_ref = rng.choice(one_refs)
        question = expand(
            rng.choice(phrases.IS_RELATED), rng, one=spoken(rng, one_ref), relation=said, other=spoken(rng, ref)
        )
        real = relation if truth else OPPOSITE[relation]
        answer = answers.relation(named(full_name(one, one_ref)), real, name, truth)
        return QA(question, answer, {"kind": "is related", "yes": truth, "relation": real})
    truths = [queries.is_related(other, relation, shape) for other in others]
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
    topic = topic_of((found.colour, found.kind), queries) if found else None
    return QA(question, answer, facts, topic)
