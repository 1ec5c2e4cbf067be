"""Pairs of images whose second differs from the first in at most one thing."""

import random
from dataclasses import dataclass, replace
from typing import Any

from mllama_cli.sketch.language import phrases
from mllama_cli.sketch.language.wording import article, expand
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.questions.scene_queries import SceneQueries
from mllama_cli.sketch.scenes.backgrounds import PLAIN_AT_A_GLANCE, allowed_colours, thin_is_seen
from mllama_cli.sketch.scenes.compose import compose, invent_shape, random_box
from mllama_cli.sketch.scenes.layout import box_of, detail_scale
from mllama_cli.sketch.scenes.palette import difference
from mllama_cli.sketch.scenes.scene import SHAPES, Scene, Shape

CHANGES = ("added", "removed", "colour", "moved", "size", "none")
WEIGHTS = (24, 20, 20, 16, 8, 12)


@dataclass(frozen=True)
class Change:
    """Two scenes and the ``sentence`` that says how they differ."""

    first: Scene
    second: Scene
    sentence: str
    facts: dict[str, Any]


def compose_change(rng: random.Random) -> Change:
    """Compose two scenes of at most four shapes with different names, and what changed between them."""
    while True:
        first = compose(rng, rng.choice((1, 1, 2, 2, 3, 3, 4)), rng.choice((None, 1.0, 1.0, 4 / 3, 1.5)))
        if len({shape.name for shape in first.shapes}) < len(first.shapes):
            continue
        kind = rng.choices(CHANGES, WEIGHTS)[0]
        result = _changed(rng, first, kind)
        if result is None:
            continue
        shapes, sentence = result
        if len({shape.name for shape in shapes}) < len(shapes):
            continue
        seed = first.seed if rng.random() < 0.5 else rng.getrandbits(31)
        second = replace(first, shapes=shapes, seed=seed)
        return Change(first, second, sentence, {"kind": "change", "change": kind, "answer": sentence})


def _changed(rng: random.Random, scene: Scene, kind: str) -> tuple[tuple[Shape, ...], str] | None:
    shapes = list(scene.shapes)
    index = rng.randrange(len(shapes))
    shape = shapes[index]
    others = [box_of(other) for other in shapes if other is not shape]
    if kind == "none":
        return scene.shapes, answers.UNCHANGED
    if kind == "removed":
        return tuple(shapes[:index] + shapes[index + 1 :]), f"The {shape.name} is gone."
    values = allowed_colours(scene.background.rgb, rng)
    if kind == "colour":
        colours = [
            name for name in values if name != shape.colour and difference(values[name], shape.rgb) > PLAIN_AT_A_GLANCE
        ]
        if shape.line and shape.kind not in ("line", "ring"):
            colours = [name for name in colours if thin_is_seen(values[name], scene.background.rgb)]
        if not colours:
            return None
        colour = rng.choice(colours)
        shapes[index] = replace(shape, colour=colour, rgb=values[colour])
        return tuple(shapes), f"The {shape.name} is now {colour}."
    if kind == "added":
        scale = detail_scale(scene.width, scene.height)
        size = max(30 / scale, shape.size * rng.uniform(0.7, 1.2))
        colour = rng.choice(list(values))
        new = invent_shape(rng, rng.choice(SHAPES), colour, values[colour], size, scale, "filled")
        area = box_of(new)
        olds = [box_of(old) for old in shapes]
        box = random_box(rng, scene.width, scene.height, olds, (area.width, area.height))
        if box is None:
            return None
        new = replace(new, x=box.x, y=box.y)
        shapes.insert(rng.randrange(len(shapes) + 1), new)
        return tuple(shapes), f"{article(new.name).capitalize()} was added."
    if kind == "size":
        return _resized(rng, scene, index)
    old = box_of(shape)
    box = random_box(rng, scene.width, scene.height, others, (old.width, old.height))
    if box is None:
        return None
    across, down = (box.x - shape.x) / scene.width, (box.y - shape.y) / scene.height
    if max(abs(across), abs(down)) < 0.25 or not 2 * min(abs(across), abs(down)) < max(abs(across), abs(down)):
        return None
    ways = ("left", "right") if abs(across) > abs(down) else ("up", "down")
    direction = ways[max(across, down, key=abs) > 0]
    shapes[index] = replace(shape, x=box.x, y=box.y)
    return tuple(shapes), f"The {shape.name} moved {direction}."


def _resized(rng: random.Random, scene: Scene, index: int) -> tuple[tuple[Shape, ...], str] | None:
    """Enlarge or shrink one shape by a factor of at least 1.6, without moving it."""
    shapes = list(scene.shapes)
    shape = shapes[index]
    factor = rng.uniform(1.6, 2.2) ** rng.choice((-1, 1))
    new = replace(shape, width=shape.width * factor, height=shape.height * factor)
    box, scale = box_of(new), detail_scale(scene.width, scene.height)
    inside = box.width / 2 < min(box.x, scene.width - box.x) and box.height / 2 < min(box.y, scene.height - box.y)
    if not inside or new.size < 26 / scale or shape.kind == "line":
        return None
    if any(box.gap(box_of(other)) < 0.02 for other in shapes if other is not shape):
        return None
    shapes[index] = new
    return tuple(shapes), f"The {shape.name} got {'bigger' if factor > 1 else 'smaller'}."


def ask_change(rng: random.Random, change: Change) -> QA:
    """Ask what changed, whether the images are the same, or what one of them shows."""
    draw = rng.random()
    if draw < 0.16:
        same = change.sentence == answers.UNCHANGED
        answer = "Yes, the pictures are the same." if same else "No, the pictures are different."
        return QA(expand(rng.choice(phrases.SAME), rng), answer, {"kind": "same", "yes": same})
    if draw < 0.36:
        number = rng.randrange(2)
        queries = SceneQueries((change.first, change.second)[number])
        nth = rng.choice((("first", "first", "1st"), ("second", "second", "2nd"))[number])
        question = expand(rng.choice(phrases.NTH), rng, nth=nth)
        facts = {"kind": "caption", "groups": [list(group) for group in queries.groups], "picture": number}
        return QA(question, answers.caption(queries), facts)
    return QA(expand(rng.choice(phrases.CHANGE), rng), change.sentence, change.facts)
