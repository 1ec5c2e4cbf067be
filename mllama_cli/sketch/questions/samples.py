"""Samples from seeds: a conversation, its images and the right answer."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from mllama_cli.sketch.language import phrases
from mllama_cli.sketch.language.wording import expand, informal
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.builders import BUILDERS, ask_describe
from mllama_cli.sketch.questions.changes import Change, ask_change, compose_change
from mllama_cli.sketch.questions.chitchat import ask_about, ask_other
from mllama_cli.sketch.questions.follow_ups import converse
from mllama_cli.sketch.questions.forms import ask_form
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.questions.scene_queries import SceneQueries
from mllama_cli.sketch.scenes.compose import compose
from mllama_cli.sketch.scenes.out_of_domain import out_of_domain_image
from mllama_cli.sketch.scenes.render import render
from mllama_cli.sketch.scenes.scene import Scene
from mllama_cli.sketch.scenes.text_cards import compose_card

DRAWING_WEIGHTS = {
    "describe": 24,
    "count": 18,
    "colour": 9,
    "shape": 9,
    "where": 11,
    "compare": 30,
    "exists": 7,
    "relation": 18,
    "follow-up": 12,
    "read": 2,
    "about": 0.5,
    "other": 0.5,
}
"""How often each task is asked about a drawing."""

CARD_WEIGHTS = {"read": 60, "describe": 16, "colour": 8, "where": 5, "count": 3, "exists": 3, "follow-up": 5}
"""The same for images with printed text."""

PICTURE_WEIGHTS = {"drawing": 56, "card": 26, "change": 9, "limits": 6, "talk": 3}
"""How often each kind of image occurs in training."""

TASKS = (*BUILDERS, "change", "follow-up", "limits", "about", "other", "json")

EVALUATION_SEEDS = 1 << 40
"""Seeds from here on are for evaluation; training takes those below."""


@dataclass(frozen=True)
class Turn:
    """One message; ``images`` are indices into the sample's images, shown before the text."""

    role: Literal["user", "assistant"]
    text: str
    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A conversation that ends with a question, and its answer.

    Attributes:
        schema: the JSON schema that the answer is held to.
    """

    messages: tuple[Turn, ...]
    images: tuple[Image.Image, ...]
    answer: str
    task: str
    facts: dict[str, Any]
    scenes: tuple[Scene, ...] = ()
    schema: dict[str, Any] | None = None

    @property
    def question(self) -> str:
        return self.messages[-1].text


def make_sample(seed: int, task: str | None = None, fonts_dir: str | None = None) -> Sample:
    """Return the sample of this seed, of one task or of any."""
    rng = random.Random(f"{seed}:{task}")
    if task is None:
        return make_group(seed, 1, fonts_dir)[0]
    while True:
        samples = _samples_of(rng, task, fonts_dir)
        if samples is not None:
            return samples


def make_group(seed: int, size: int, fonts_dir: str | None = None, forms: int = 0) -> list[Sample]:
    """Return up to ``size`` samples about the same images, for training: drawing takes longer than asking.

    Up to ``forms`` more are answered in JSON; the others do not depend on them.
    """
    rng = random.Random(f"{seed}:group:{size}")
    kind = rng.choices(list(PICTURE_WEIGHTS), list(PICTURE_WEIGHTS.values()))[0]
    if kind == "talk":
        return [make_sample(rng.getrandbits(60), rng.choice(("about", "other"))) for _ in range(size)]
    if kind == "change":
        return _change_group(rng, size)
    if kind == "limits":
        image = (out_of_domain_image(rng),)
        return [_limits_sample(rng, image) for _ in range(min(size, 2))]
    scene = compose_card(rng, fonts_dir) if kind == "card" else _drawing(rng)
    queries, images = SceneQueries(scene), (render(scene),)
    weights = CARD_WEIGHTS if kind == "card" else DRAWING_WEIGHTS
    samples: list[Sample] = []
    seen: set[str] = set()
    for _ in range(size * 4):
        task = rng.choices(list(weights), list(weights.values()))[0]
        sample = None
        for _ in range(5):  # some tasks rarely suit a scene: try them as hard as the others
            sample = sample or _about_scene(rng, task, queries, images)
        if sample is not None and (len(sample.messages) > 1 or sample.answer not in seen):
            seen.add(sample.answer)
            samples.append(sample)
            if len(samples) == size:
                break
    samples = samples or [_sample(rng, [ask_describe(rng, queries)], "describe", images, (scene,))]
    draws = random.Random(f"{seed}:forms")
    asked = (_form_sample(draws, queries, images) for _ in range(2 * forms))
    return samples + [sample for sample in asked if sample is not None][:forms]


def _samples_of(rng: random.Random, task: str, fonts_dir: str | None) -> Sample | None:
    if task in ("about", "other"):
        return _talk_sample(rng, task)
    if task == "limits":
        return _limits_sample(rng, (out_of_domain_image(rng),))
    if task == "change":
        change = compose_change(rng)
        return _change_sample(rng, change, (render(change.first), render(change.second)))
    card = task == "read" or (task in (*CARD_WEIGHTS, "json") and rng.random() < 0.12)
    scene = compose_card(rng, fonts_dir) if card and rng.random() < 0.97 else _drawing(rng)
    return _about_scene(rng, task, SceneQueries(scene), None)


def _drawing(rng: random.Random) -> Scene:
    """Compose any scene; over a third have the few, different shapes that relations and sizes need."""
    if rng.random() < 0.62:
        return compose(rng)
    return compose(rng, rng.choice((2, 2, 3, 3, 4)), contrast=rng.random() < 0.65)


def _about_scene(
    rng: random.Random, task: str, queries: SceneQueries, images: tuple[Image.Image, ...] | None
) -> Sample | None:
    """Return a sample of a task about a scene, or None if it cannot be asked; the image is drawn only then."""
    turns: list[QA] | None
    if task == "json":
        return _form_sample(rng, queries, images)
    if task == "follow-up":
        turns = converse(rng, queries)
    elif task in ("about", "other"):
        turns = [ask_about(rng) if task == "about" else ask_other(rng)]
    else:
        asked = BUILDERS[task](rng, queries)
        turns = [asked] if asked else None
    return _sample(rng, turns, task, images or (render(queries.scene),), (queries.scene,)) if turns else None


def _sample(
    rng: random.Random, turns: Sequence[QA], task: str, images: tuple[Image.Image, ...], scenes: tuple[Scene, ...]
) -> Sample:
    """Return a sample with informal spelling; the images come with the first question."""
    messages: list[Turn] = []
    for number, asked in enumerate(turns):
        if number:
            messages.append(Turn("assistant", turns[number - 1].answer))
        shown = tuple(range(len(images))) if number == 0 else ()
        question = asked.question if asked.question == "Describe this image." else informal(asked.question, rng)
        messages.append(Turn("user", question, shown))
    return Sample(tuple(messages), images, turns[-1].answer, task, turns[-1].facts, scenes)


def _form_sample(rng: random.Random, queries: SceneQueries, images: tuple[Image.Image, ...] | None) -> Sample | None:
    form = ask_form(rng, queries)
    if form is None:
        return None
    images = images or (render(queries.scene),)
    answer = json.dumps(form.value, ensure_ascii=False)
    facts = {"kind": "form", "value": form.value}
    return Sample((Turn("user", form.question, (0,)),), images, answer, "json", facts, (queries.scene,), form.schema)


def _talk_sample(rng: random.Random, task: str) -> Sample:
    """Return a sample mostly without an image. A question about a missing drawing is "other" too."""
    draw = rng.random()
    if task == "other" and draw < 0.25:
        asked = _any_question(rng)
        return _sample(rng, [QA(asked, answers.NO_PICTURE, {"kind": "no picture"})], task, (), ())
    asked_ = ask_about(rng) if task == "about" else ask_other(rng)
    if draw > 0.85:
        scene = compose(rng)
        return _sample(rng, [asked_], task, (render(scene),), (scene,))
    turns = [asked_]
    if draw > 0.75:
        turns.insert(0, ask_about(rng) if rng.random() < 0.7 else ask_other(rng))
    return _sample(rng, turns, task, (), ())


def _limits_sample(rng: random.Random, images: tuple[Image.Image, ...]) -> Sample:
    return _sample(rng, [QA(_any_question(rng), answers.LIMITS, {"kind": "limits"})], "limits", images, ())


def _any_question(rng: random.Random) -> str:
    """Return a question about an arbitrary drawing."""
    while True:
        task = rng.choice(("describe", "describe", "describe", "count", "colour", "shape", "where", "exists", "read"))
        if task == "read":
            return expand(rng.choice(phrases.READ), rng)
        asked = BUILDERS[task](rng, SceneQueries(compose(rng)))
        if asked is not None:
            return asked.question


def _change_sample(rng: random.Random, change: Change, images: tuple[Image.Image, ...]) -> Sample:
    """Show both images in one message, or the second in a later one, which sees only the first one's description."""
    scenes = (change.first, change.second)
    seen_in_caption = change.facts["change"] not in ("moved", "size")
    if rng.random() < 0.7 or not seen_in_caption:
        return _sample(rng, [ask_change(rng, change)], "change", images, scenes)
    first = answers.caption(SceneQueries(change.first))
    question = informal(expand(rng.choice(phrases.DESCRIBE), rng), rng)
    now = informal(expand(rng.choice(phrases.CHANGE_NOW), rng), rng)
    messages = (Turn("user", question, (0,)), Turn("assistant", first), Turn("user", now, (1,)))
    return Sample(messages, images, change.sentence, "change", change.facts, scenes)


def _change_group(rng: random.Random, size: int) -> list[Sample]:
    change = compose_change(rng)
    images = (render(change.first), render(change.second))
    return [_change_sample(rng, change, images) for _ in range(min(size, 3))]
