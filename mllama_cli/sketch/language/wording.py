"""The wording of questions and answers: names, articles, lists, and the variety of users' questions."""

import random
import re
from collections.abc import Sequence
from functools import lru_cache

from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import SHAPES

Ref = tuple[str | None, str | None]
"""(colour, shape) as a question names things; None for any."""

SYNONYMS = {
    "circle": ("disc", "disk", "dot", "round shape"),
    "oval": ("ellipse",),
    "cross": ("plus", "plus sign"),
    "ring": ("donut", "doughnut", "hoop"),
    "diamond": ("rhombus",),
    "line": ("straight line", "stroke"),
    "heart": ("love heart",),
    "star": ("five-pointed star",),
    "arrow": ("pointer",),
    "triangle": ("three-sided shape",),
}
THINGS = ("shape", "object", "thing", "figure", "item")

PLACES = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}


def plural(noun: str) -> str:
    """
    >>> plural("red cross"), plural("box"), plural("star")
    ('red crosses', 'boxes', 'stars')
    """
    if noun == "rhombus":
        return "rhombuses"
    return noun + ("es" if noun.endswith(("s", "x", "h")) else "s")


def article(noun: str) -> str:
    """
    >>> article("orange star"), article("red oval")
    ('an orange star', 'a red oval')
    """
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "oval"), counted(3, "cross")
    ('an oval', '3 crosses')
    """
    return article(noun) if number == 1 else f"{number} {plural(noun)}"


def listed(items: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def named(ref: Ref, anything: str = "shape") -> str:
    """Return the one name that answers use: "red circle", "circle", "red shape" or "shape"."""
    colour, kind = ref
    return " ".join(word for word in (colour, kind or anything) if word)


def spoken(rng: random.Random, ref: Ref) -> str:
    """Return a name as a question may phrase it."""
    colour, kind = ref
    if kind is None:
        noun = (
            rng.choice(THINGS) if colour is None else rng.choice(("thing", "shape", "object", "one", "thing", "figure"))
        )
    else:
        noun = rng.choice(SYNONYMS[kind]) if kind in SYNONYMS and rng.random() < 0.12 else kind
    return f"{colour} {noun}" if colour else noun


@lru_cache(maxsize=4096)
def _choices(group: str) -> tuple[str, ...]:
    return tuple(group.split("|"))


_GROUP = re.compile(r"\[([^\[\]]*)\]")


def expand(template: str, rng: random.Random, **slots: str) -> str:
    """Return a random expansion of a template: ``[a|b|]`` means any of these, ``{name}`` a slot.

    >>> expand("[How many|How many] {things}[?|?]", random.Random(0), things="stars")
    'How many stars?'
    """
    while "[" in template:
        template = _GROUP.sub(lambda match: rng.choice(_choices(match[1])), template)
    for name, text in slots.items():
        template = template.replace("{" + name + "}", text)
    return re.sub(r" +([?.,!])", r"\1", re.sub(r"  +", " ", template)).strip()


_NAMES = frozenset(
    (*COLOURS, *SHAPES, *map(plural, SHAPES), "grey", "left", "right", "above", "below", "bigger", "count")
)
_OPENINGS = (
    "Please, ",
    "Hey, ",
    "OK, ",
    "Tell me: ",
    "Hi! ",
    "So, ",
    "Look: ",
    "Can you tell me: ",
    "Please tell me: ",
    "I wonder, ",
)
_CLOSINGS = (
    " Thanks.",
    ", please",
    " please",
    " Thank you.",
    " Answer shortly.",
    " Please answer.",
    " in one sentence",
)


def informal(text: str, rng: random.Random) -> str:
    """Return the question as people type it: lower case, no question mark, American spelling, an occasional typo."""
    if rng.random() < 0.5:
        text = text.replace("colour", "color").replace("Colour", "Color").replace("centre", "center")
    if rng.random() < 0.3:
        text = text.replace("gray", "grey")
    draw = rng.random()
    if draw < 0.06:
        opening = rng.choice(_OPENINGS)
        text = opening + text[0].lower() + text[1:]
    elif draw < 0.12:
        end = text[-1] if text[-1] in "?." else ""
        closing = rng.choice(_CLOSINGS)
        text = text + closing if closing[-1] == "." and end else text.rstrip("?.") + closing.rstrip(".") + (end or ".")
    if rng.random() < 0.05:
        text = _mistyped(text, rng)
    if rng.random() < 0.25:
        text = text.rstrip("?.")
    draw = rng.random()
    if draw < 0.25:
        return text.lower()
    if draw < 0.27:
        return text.upper()
    return text[0].upper() + text[1:] if draw < 0.9 else text


def _mistyped(text: str, rng: random.Random) -> str:
    """Add one typo to one word that is not itself the point of the question."""
    words = text.split(" ")
    indices = [i for i, word in enumerate(words) if len(word) >= 4 and word.lower().strip("?.,!:") not in _NAMES]
    if not indices:
        return text
    index = rng.choice(indices)
    word = words[index]
    at = rng.randrange(1, len(word) - 1)
    words[index] = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )
    return " ".join(words)
