"""Questions whose answers are JSON: the facts of a drawing in fields whose names and order vary.

Mostly the question does not mention JSON, since a schema forces it: prose remains what the model says by itself.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mllama_cli.sketch.language import phrases
from mllama_cli.sketch.language.wording import PLACES, THINGS, expand, informal, listed, plural
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.builders import BUILDERS
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.questions.scene_queries import SceneQueries
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import DIRECTIONS, SHAPES, Shape

Schema = dict[str, Any]

NAMES = {
    "colour": ("color", "color", "colour"),
    "kind": ("shape", "shape", "kind", "name", "type", "form"),
    "count": ("count", "count", "number", "total", "how_many", "quantity", "n"),
    "place": ("position", "place", "location", "where"),
    "direction": ("direction", "points", "pointing"),
    "thing": ("object", "thing", "item", "figure"),
    "kinds": ("shapes", "kinds", "names"),
    "colours": ("colors", "colours"),
    "things": ("objects", "items", "things", "figures"),
    "truth": ("answer", "yes", "result", "correct"),
    "found": ("exists", "present", "found", "answer", "yes"),
    "text": ("text", "text", "words", "reads", "title", "printed"),
    "text colour": ("color", "colour", "text_color"),
    "has text": ("has_text", "text_present"),
    "ground": ("background", "background_color"),
    "empty": ("empty", "is_empty"),
    "sentence": ("description", "caption", "sentence", "summary"),
    "thought": ("reasoning", "thoughts", "explanation"),
}
"""What a field may be called, by what it holds."""

VALUES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "text colour": COLOURS,
    "ground": COLOURS,
    "kind": SHAPES,
    "place": tuple(PLACES),
    "direction": DIRECTIONS,
}
"""The values of fields that a schema may list."""

LIST_NAME = "shapes"
"""The field with the list of shapes where the question names only the fields of each."""

OPEN = 0.05
"""How often nothing says which fields the JSON has."""

OPTIONAL = 0.25
"""How often a schema does not require its only field. Of several the model could not know, as it sees no schema."""

ONE_NAME = 0.6
"""How often the question is about all shapes, and the answer one set of fields, where all have one name."""

ASKED = 0.35
"""How often the question asks for JSON; about half of these answers are not held to a schema."""

THINKS = 0.12
"""How often a field with the answer in words comes before the others."""


@dataclass(frozen=True)
class Form:
    """A question and the JSON value that answers it.

    Attributes:
        schema: what holds the answer to JSON; None where the question asks for it and nothing else does.
    """

    question: str
    value: Any
    schema: Schema | None


Facts = dict[str, Any]
"""Values by what they are: keys of ``NAMES``, or the plural of a shape. "things" are a list of such facts."""


def ask_form(rng: random.Random, queries: SceneQueries) -> Form | None:
    """Ask a question about a scene whose answer has a form; None if the scene does not suit the question drawn."""
    if rng.random() < OPEN:
        return _open_form(rng, queries)
    one_name = len(queries.groups) == 1 and rng.random() < ONE_NAME
    make = _one_name if one_name else rng.choices(list(_MAKERS), list(_MAKERS.values()))[0]
    found = make(rng, queries)
    if found is None:
        return None
    question, sentence, facts = found
    question = informal(question, rng)
    asked = rng.random() < ASKED
    if rng.random() < THINKS and '"' not in sentence and not asked:
        facts = {rng.choice(("thought", "sentence")): sentence, **facts}
    names, inner = _names(rng, facts), _names(rng, _first_thing(facts))
    if inner and rng.random() < 0.4:
        names["things"] = LIST_NAME
    if len({*names.values()}) < len(names) or len({*inner.values()}) < len(inner):
        return None
    free = asked and make is not _one_name and (len(facts) == 1 or not inner) and rng.random() < 0.5
    if asked:
        fields = listed(list((inner or names).values()))
        question += "" if question[-1] in ".?!" else "."
        question = expand(rng.choice(phrases.AS_JSON), rng, question=question, names=fields)
    if free and inner:
        names["things"] = LIST_NAME
    value = {
        names[key]: [{inner[k]: v for k, v in each.items()} for each in fact] if key == "things" and inner else fact
        for key, fact in facts.items()
    }
    if free:
        return Form(question, value, None)
    schema = _closed({names[key]: _schema(rng, key, fact, inner) for key, fact in facts.items()})
    if len(facts) == 1 and rng.random() < OPTIONAL:
        del schema["required"]
    return Form(question, value, schema)


def _open_form(rng: random.Random, queries: SceneQueries) -> Form:
    """Ask for JSON without a word about its fields: the answer is a list of all shapes by name."""
    pairs = [(number, name.split(" ")) for number, name in queries.groups]
    value = {LIST_NAME: [{"color": colour, "shape": kind, "count": number} for number, (colour, kind) in pairs]}
    question = informal(_describe(rng), rng)
    if rng.random() < 0.5:
        return Form(question, value, {"type": "object"})
    question += "" if question[-1] in ".?!" else "."
    return Form(f"{question} {expand(phrases.AS_ANY_JSON, rng)}", value, rng.choice((None, {"type": "object"})))


def _names(rng: random.Random, facts: Facts) -> dict[str, str]:
    return {key: rng.choice(NAMES.get(key, (key,))) for key in facts}


def _first_thing(facts: Facts) -> Facts:
    """Return the first of the things, if their facts have fields of their own."""
    things = facts.get("things")
    return things[0] if things and isinstance(things[0], dict) else {}


def _closed(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _schema(rng: random.Random, key: str, fact: Any, inner: dict[str, str]) -> Schema:
    """Return one of the schemas that a user may write for a field."""
    if isinstance(fact, bool):
        return {"type": "boolean"}
    if isinstance(fact, int):
        return rng.choice(({"type": "integer"}, {"type": "integer", "minimum": 0, "maximum": 9}, {"type": "number"}))
    if isinstance(fact, list):
        if inner and key == "things":
            thing = fact[0]
            item = _closed({inner[name]: _schema(rng, name, thing[name], {}) for name in thing})
            for name in thing:
                _widen(item["properties"][inner[name]], [each[name] for each in fact])
        else:
            item = {"type": "string"}
        return {"type": "array", "items": item, **rng.choice(({}, {"maxItems": 8}))}
    draw = rng.random()
    if key in VALUES and draw < 0.35:
        others = [value for value in VALUES[key] if value != fact]
        values = [fact, *rng.sample(others, rng.choice((1, 3, len(others))))]
        rng.shuffle(values)
        return {"enum": values}
    return {"type": "string"} if draw < 0.8 else {"type": "string", "maxLength": len(fact) + rng.choice((4, 12, 200))}


def _widen(schema: Schema, values: Sequence[Any]) -> None:
    """Let a schema drawn for the first of some values hold them all."""
    if "enum" in schema:
        schema["enum"] += [value for value in dict.fromkeys(values) if value not in schema["enum"]]
    if "maxLength" in schema:
        schema["maxLength"] = max(schema["maxLength"], *map(len, values))


Made = tuple[str, str, Facts] | None
"""A question, its answer in words, and the facts of its answer in fields."""


def _shuffled(rng: random.Random, facts: Facts, least: int = 1) -> Facts:
    """Return some of the facts in any order."""
    keys = rng.sample(list(facts), rng.randint(min(least, len(facts)), len(facts)))
    return {key: facts[key] for key in keys}


def _describe(rng: random.Random) -> str:
    return expand(rng.choice(phrases.DESCRIBE), rng)


def _one_name(rng: random.Random, queries: SceneQueries) -> Made:
    """Ask about a drawing whose shapes have one name, such as three red circles."""
    shape = queries.shapes[0]
    facts: Facts = {"colour": shape.colour, "kind": shape.kind, "count": len(queries.shapes)}
    zone = queries.zone_of(shape)
    if len(queries.shapes) == 1 and zone is not None:
        facts["place"] = zone
    number = expand(rng.choice(phrases.COUNT), rng, things=plural(rng.choice(THINGS)))
    question = rng.choice((_describe(rng), _describe(rng), expand(rng.choice(phrases.ONLY_SHAPE), rng), number))
    return question, answers.caption(queries), _shuffled(rng, facts, 2)


def _overview(rng: random.Random, queries: SceneQueries) -> Made:
    """Ask what is there: numbers, names and colours of all shapes."""
    text, ground = queries.scene.lettering, queries.scene.background.colour
    facts: Facts = {"kinds": queries.kinds, "colours": queries.colours, "count": len(queries.shapes)}
    facts["has text"] = text is not None
    if ground is not None:
        facts["ground"] = ground
    if text is not None:
        facts["text"] = text.text.replace("\n", " ")
    return _describe(rng), answers.caption(queries), _shuffled(rng, facts)


def _list(rng: random.Random, queries: SceneQueries) -> Made:
    """Ask for a list of what is there: each name once, or each shape with its place."""
    if not queries.groups:
        return None
    counts = [number for number, _ in queries.groups]
    pairs = [name.split(" ") for _, name in queries.groups]
    placed = queries.by_zone(queries.shapes) if rng.random() < 0.3 else None
    things: list[Any]
    if placed:
        keys = _keys(rng, "colour", "kind", "place")
        things = [_thing(shape, keys, place=zone) for shape, zone in placed]
        question = expand(rng.choice(phrases.DETAIL), rng)
    elif rng.random() < 0.15:
        things, question = [name for _, name in queries.groups], _describe(rng)
    else:
        keys = _keys(rng, "colour", "kind", *(("count",) if rng.random() < 0.5 else ()))
        known = zip(counts, pairs, strict=True)
        things = [{key: {"colour": c, "kind": k, "count": n}[key] for key in keys} for n, (c, k) in known]
        question = _describe(rng)
    facts: Facts = {"things": things}
    if rng.random() < 0.2:
        facts = _shuffled(rng, {**facts, "count": len(queries.shapes)}, 2)
    return question, answers.with_places(placed) if placed else answers.caption(queries), facts


def _numbers(rng: random.Random, queries: SceneQueries) -> Made:
    """Ask how many there are of some shapes, whose names are the fields."""
    kinds = list(dict.fromkeys((*queries.kinds, *rng.sample(SHAPES, 2))))
    kinds = rng.sample(kinds, rng.randint(1, min(4, len(kinds))))
    facts: Facts = {plural(kind): len(queries.matching((None, kind))) for kind in kinds}
    number = expand(rng.choice(phrases.COUNT), rng, things=plural(rng.choice(THINGS)))
    return rng.choice((_describe(rng), number)), answers.caption(queries), facts


def _keys(rng: random.Random, *keys: str) -> list[str]:
    return rng.sample(keys, len(keys))


def _thing(shape: Shape, keys: Sequence[str], place: str) -> Facts:
    return {key: {"colour": shape.colour, "kind": shape.kind, "place": place}[key] for key in keys}


def _question(rng: random.Random, queries: SceneQueries, *tasks: str) -> QA | None:
    return BUILDERS[rng.choice(tasks)](rng, queries)


def _any_question(rng: random.Random, queries: SceneQueries) -> Made:
    """Ask any question that is also answered in words."""
    asked = _question(
        rng, queries, "count", "count", "colour", "shape", "where", "where", "compare", "exists", "relation", "read"
    )
    facts = asked and _facts_of(rng, queries, asked)
    return (asked.question, asked.answer, facts) if asked and facts else None


def _sentence(rng: random.Random, queries: SceneQueries) -> Made:
    """Ask any question; a field has the answer in words."""
    asked = _question(rng, queries, "describe", *BUILDERS)
    if asked is None or '"' in asked.answer:
        return None
    return asked.question, asked.answer, {"sentence": asked.answer}


def _facts_of(rng: random.Random, queries: SceneQueries, asked: QA) -> Facts | None:
    facts = asked.facts
    kind = facts["kind"]
    lettering = queries.scene.lettering
    if kind == "count":
        return {"count": facts["count"]}
    if kind == "exists":
        return _shuffled(rng, {"found": facts["count"] > 0, "count": facts["count"]})
    if kind in ("is bigger", "is related"):
        return {"truth": facts["yes"]}
    if kind == "direction":
        return {"direction": facts["direction"]}
    if kind == "bigger":
        return {"thing": facts["winner"]}
    if kind == "read":
        if lettering is None:
            return {"has text": False}
        known: Facts = {"text": facts["text"], "text colour": lettering.colour, "has text": True}
        return _shuffled(rng, known) if rng.random() < 0.6 else {"text": facts["text"]}
    if kind == "colour" and "of" not in facts:
        return {"colour": facts["colours"][0]} if len(facts["colours"]) == 1 else {"colours": facts["colours"]}
    if kind == "where" and facts["of"] == "text":
        return {"place": facts["zone"]}
    shape = _shape_of(queries, asked)
    if shape is None:
        return {"colours": facts["colours"]} if kind == "colour" else None
    if kind in ("relation", "extreme", "place") and rng.random() < 0.4:
        return {"thing": shape.name}
    about: Facts = {"colour": shape.colour, "kind": shape.kind}
    zone = queries.zone_of(shape)
    if zone is not None:
        about["place"] = zone
    return _shuffled(rng, about)


def _shape_of(queries: SceneQueries, asked: QA) -> Shape | None:
    """Return the one shape that an answer is about, if it is about one."""
    if asked.facts["kind"] == "absent" or asked.topic is None:
        return None
    matches = queries.matching(asked.topic)
    return matches[0] if len(matches) == 1 else None


_MAKERS: dict[Callable[[random.Random, SceneQueries], Made], float] = {
    _overview: 18,
    _list: 34,
    _numbers: 8,
    _any_question: 36,
    _sentence: 6,
}
