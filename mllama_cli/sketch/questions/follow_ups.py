"""Conversations of several turns about one image: "and what colour is it?", "and the square?"."""

import random

from mllama_cli.sketch.language.wording import Ref, article, expand, named, plural, spoken
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.builders import BUILDERS, ask_describe
from mllama_cli.sketch.questions.chitchat import ask_about
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.questions.referring import full_name, topic_of
from mllama_cli.sketch.questions.scene_queries import SceneQueries
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import SHAPES

IT_COLOUR = (
    "And what colour is it?",
    "[And|] [what|which] colour is it?",
    "[What|Which] colour [is that|has it|does it have|is that one|is this]?",
    "[And|] [its colour|the colour|in which colour]?",
    "[What's|What is] its colour?",
    "Is it red or [blue|green|black], or what?",
)
IT_WHERE = (
    "And where is it?",
    "[And|] where [is it|is that|is that one|exactly]?",
    "[Where can I find it|Where do you see it|Where's it]?",
    "[And|] [its place|its position|its location|where]?",
    "In which [part|corner|place] is it?",
)
NEXT_COUNT = (
    "And {things}?",
    "[And|] [how many|what about|how about] {things}?",
    "[And|] the {things}?",
    "And how many {things}?",
    "[Now|Then] {things}?",
)
NEXT_THE = (
    "And the {thing}?",
    "[And|] what about the {thing}?",
    "[And|] how about the {thing}?",
    "[Now|Then] the {thing}?",
    "[And|] the {thing}?",
)
NEXT_EXISTS = (
    "And {a_thing}?",
    "[And|] what about {a_thing}?",
    "[Or|And] {a_thing}?",
    "[And|] is there {a_thing}?",
)
READ_COLOUR = (
    "And what colour is it?",
    "[And|] [what|which] colour [is it|is the text|has it|are the letters]?",
    "In [what|which] colour?",
)
ANYTHING = tuple(name for name in BUILDERS if name != "read")


def converse(rng: random.Random, queries: SceneQueries) -> list[QA] | None:
    """Return two or three questions; later ones mostly refer to earlier ones."""
    first = _first(rng, queries)
    if first is None:
        return None
    turns = [first]
    for _ in range(1 if rng.random() < 0.7 else 2):
        following = _following(rng, queries, turns[-1])
        if following is None or following.answer == turns[-1].answer:
            break
        turns.append(following)
    return turns if len(turns) > 1 else None


def _first(rng: random.Random, queries: SceneQueries) -> QA | None:
    if queries.scene.lettering is not None and rng.random() < 0.7:
        return BUILDERS["read"](rng, queries)
    if rng.random() < 0.15:
        return ask_describe(rng, queries)
    return BUILDERS[rng.choice(ANYTHING)](rng, queries)


def _following(rng: random.Random, queries: SceneQueries, last: QA) -> QA | None:
    kind = last.facts["kind"]
    if rng.random() < 0.05:
        return ask_about(rng)
    if kind == "about" or rng.random() < 0.22:
        asked = BUILDERS[rng.choice(ANYTHING)](rng, queries)
        if asked is not None and rng.random() < 0.25:
            asked = QA("And " + asked.question[0].lower() + asked.question[1:], asked.answer, asked.facts, asked.topic)
        return asked
    if kind == "read" and queries.scene.lettering is not None:
        name = queries.scene.lettering.colour
        question = expand(rng.choice(READ_COLOUR), rng)
        return QA(question, answers.colour("text", [name], 1), {"kind": "colour", "colours": [name]})
    if kind == "count" and "ref" in last.facts and rng.random() < 0.75:
        return _next_count(rng, queries, last)
    if kind == "exists" and rng.random() < 0.4:
        ref = _any_ref(rng, queries, last)
        question = expand(rng.choice(NEXT_EXISTS), rng, a_thing=article(spoken(rng, ref)))
        number = len(queries.matching(ref))
        facts = {"kind": "exists", "ref": ref, "count": number}
        return QA(question, answers.exists(number, ref), facts, topic_of(ref, queries))
    if kind in ("colour", "where") and "of" in last.facts and rng.random() < 0.5:
        return _same_of_another(rng, queries, last)
    if last.topic is not None:
        return _about_it(rng, queries, last.topic, kind)
    return None


def _about_it(rng: random.Random, queries: SceneQueries, topic: Ref, last_kind: str) -> QA | None:
    matches = queries.matching(topic)
    if len(matches) != 1:
        return None
    shape = matches[0]
    full = full_name(shape, topic)
    zone = queries.zone_of(shape)
    if last_kind not in ("where", "place") and zone is not None and (topic[0] is not None or rng.random() < 0.5):
        question = expand(rng.choice(IT_WHERE), rng)
        return QA(question, answers.where(named(full), zone), {"kind": "where", "of": shape.name, "zone": zone}, full)
    if topic[0] is not None or last_kind == "colour":
        return None
    question = expand(rng.choice(IT_COLOUR), rng)
    facts = {"kind": "colour", "of": shape.kind, "colours": [shape.colour]}
    return QA(question, answers.colour(shape.kind, [shape.colour], 1), facts, full)


def _next_count(rng: random.Random, queries: SceneQueries, last: QA) -> QA | None:
    ref = _any_ref(rng, queries, last)
    said = plural(spoken(rng, ref)) if ref[1] else f"{ref[0]} ones"
    question = expand(rng.choice(NEXT_COUNT), rng, things=said)
    number = len(queries.matching(ref))
    return QA(
        question, answers.count(number, ref), {"kind": "count", "ref": ref, "count": number}, topic_of(ref, queries)
    )


def _same_of_another(rng: random.Random, queries: SceneQueries, last: QA) -> QA | None:
    """Ask "And the square?" after a question about the circle's position or colour."""
    kind = rng.choice(queries.kinds if queries.kinds and rng.random() < 0.85 else SHAPES)
    ref: Ref = (None, kind)
    matches = queries.matching(ref)
    question = expand(rng.choice(NEXT_THE), rng, thing=spoken(rng, ref))
    if not matches:
        return QA(question, answers.absent(ref), {"kind": "absent", "ref": ref})
    if last.facts["kind"] == "colour":
        colours = [name for name in COLOURS if any(shape.colour == name for shape in matches)]
        facts = {"kind": "colour", "of": kind, "colours": colours}
        return QA(question, answers.colour(kind, colours, len(matches)), facts, topic_of(ref, queries))
    zone = queries.zone_of(matches[0])
    if len(matches) > 1 or zone is None:
        return None
    return QA(question, answers.where(kind, zone), {"kind": "where", "of": matches[0].name, "zone": zone}, ref)


def _any_ref(rng: random.Random, queries: SceneQueries, last: QA) -> Ref:
    kinds = queries.kinds if queries.kinds and rng.random() < 0.75 else SHAPES
    colours = queries.colours if queries.colours and rng.random() < 0.75 else COLOURS
    if rng.random() < 0.7:
        return (None, rng.choice(kinds))
    return (rng.choice(colours), None if rng.random() < 0.6 else rng.choice(kinds))
