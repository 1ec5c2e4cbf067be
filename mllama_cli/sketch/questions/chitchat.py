"""Chitchat without a drawing: who the model is, greetings, and subjects that it does not know."""

import random

from mllama_cli.sketch.language.chitchat_topics import OTHER_NAMES, OTHER_QUESTIONS, SLOTS, TOPICS
from mllama_cli.sketch.language.wording import expand, listed, plural
from mllama_cli.sketch.questions import answers
from mllama_cli.sketch.questions.qa import QA
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import SHAPES

WHO = "I am mllama-sketch, a very small model that knows simple drawings and short printed text."
CAN = "I can describe simple drawings, count and compare shapes, name colours and places, and read short printed text."
ANSWERS = {
    "who": WHO,
    "can": CAN,
    "cannot": "I know nothing but simple drawings and short printed text, and I make mistakes.",
    "hello": "Hello! Show me a simple drawing and ask me about it.",
    "thanks": "You are welcome!",
    "bye": "Goodbye!",
    "feel": "I am a program, but thank you for asking.",
    "maker": "The makers of mllama-cli trained me from scratch on drawings made by a program.",
    "llama": "No, I am mllama-sketch, a very small model with the architecture of Llama 3.2 Vision.",
    "size": "I have about 6 million parameters.",
    "shapes": f"I know {listed([plural(shape) for shape in SHAPES])}.",
    "colours": f"I know {listed(COLOURS)}.",
    "praise": "Thank you!",
    "blame": "I am sorry. I am a very small model and make mistakes.",
}
"""The model's true statements about itself, by topic."""


def ask_about(rng: random.Random) -> QA:
    """Ask about the model itself, or greet it."""
    topic = rng.choice(list(ANSWERS))
    question = expand(rng.choice(TOPICS[topic]), rng, model=rng.choice(OTHER_NAMES))
    return QA(question, ANSWERS[topic], {"kind": "about", "topic": topic})


def ask_other(rng: random.Random) -> QA:
    """Ask about an unrelated subject."""
    template = rng.choice(OTHER_QUESTIONS)
    return QA(_filled(rng, template), answers.LIMITS, {"kind": "limits"})


def _filled(rng: random.Random, template: str) -> str:
    slots = {name: rng.choice(values) for name, values in SLOTS.items() if "{" + name + "}" in template}
    return expand(template, rng, **slots)
