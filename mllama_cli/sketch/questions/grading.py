"""Grade answers by what they say, not by their wording, and without a model."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllama_cli.sketch.language.wording import SYNONYMS, plural
from mllama_cli.sketch.questions.samples import Sample
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import SHAPES

_NUMBERS = {
    word: number for number, word in enumerate(("no", "one", "two", "three", "four", "five", "six", "seven", "eight"))
}
_NUMBERS |= {"a": 1, "an": 1, "the": 1, "none": 0, "zero": 0, "nothing": 0}
_PLACES = {"top", "bottom", "left", "right", "middle", "up", "down", "above", "below"}
_SAME = {"center": "middle", "centre": "middle", "upper": "top", "lower": "bottom", "larger": "bigger", "grey": "gray"}
_DEEDS = {"added", "gone", "moved", "nothing", "same", "different", "now", "bigger", "smaller", "biggest", "smallest"}
_NOUNS = {noun: kind for kind in SHAPES for word in (kind, *SYNONYMS.get(kind, ())) for noun in (word, plural(word))}
_NOUNS |= dict.fromkeys(("shape", "shapes", "object", "objects", "thing", "things", "text", "background"), "shape")


@dataclass(frozen=True)
class Meaning:
    """The facts that a sentence states, as far as the questions need them.

    Attributes:
        things: (how many, colour or "", shape) in order.
        colours: colours without a noun, as in "is red".
        words: places, relations and what happened, in order.
        quoted: texts in double quotes.
        verdict: "yes", "no" or "".
    """

    things: tuple[tuple[int, str, str], ...]
    colours: tuple[str, ...]
    words: tuple[str, ...]
    quoted: tuple[str, ...]
    verdict: str


def understand(text: str) -> Meaning:
    """
    >>> understand("No, the red circle is left of 2 stars.")
    Meaning(things=((1, 'red', 'circle'), (2, '', 'star')), colours=(), words=('left',), quoted=(), verdict='no')
    """
    quoted = tuple(re.findall(r'"([^"]*)"', text))
    plain = re.sub(r'"[^"]*"', " ", text).lower()
    words = [_SAME.get(word, word) for word in re.findall(r"[a-z]+|\d+", plain)]
    verdict = words[0] if words and words[0] in ("yes", "no") and re.match(r"(yes|no)\b\W*,", plain.strip()) else ""
    things: list[tuple[int, str, str]] = []
    colours: list[str] = []
    rest: list[str] = []
    number, colour = 1, ""
    for word in words[1:] if verdict else words:
        if word in COLOURS:
            if colour:
                colours.append(colour)
            colour = word
        elif word in _NOUNS:
            things.append((number, colour, _NOUNS[word]))
            number, colour = 1, ""
        elif word.isdigit() or word in _NUMBERS:
            if colour:
                colours.append(colour)
                colour = ""
            number = int(word) if word.isdigit() else _NUMBERS[word]
            if word == "nothing":
                rest.append(word)
        else:
            if colour:
                colours.append(colour)
                colour = ""
            if word in _PLACES or word in _DEEDS:
                rest.append(word)
    if colour:
        colours.append(colour)
    return Meaning(tuple(things), tuple(colours), tuple(rest), quoted, verdict)


def is_right(sample: Sample, answer: str) -> bool:
    """Return whether the answer gives what the question asks for and is true of the sample's images."""
    kind = sample.facts["kind"]
    if kind in ("limits", "about", "no picture"):
        return _plain(answer) == _plain(sample.answer)
    if kind == "form":
        return _is_form(sample.facts["value"], answer)
    if kind == "caption":
        return caption_score(sample.answer, answer) == 1.0
    if kind == "read" and sample.facts["text"] is not None:
        return f'"{sample.facts["text"]}"' in answer or answer.strip('." ') == str(sample.facts["text"])
    said, true = understand(answer), understand(sample.answer)
    if kind == "count":
        return _number(answer) == int(sample.facts["count"])
    if kind == "exists" and said.verdict:
        return said.verdict == true.verdict and (said.things == true.things or not said.things)
    if kind == "colour":
        wanted = sorted(sample.facts["colours"])
        return sorted({*said.colours, *(colour for _, colour, _ in said.things if colour)}) == wanted
    if kind == "shape":
        return Counter(_kinds(said)) == Counter(_kinds(true))
    return said == true


def caption_score(true: str, answer: str) -> float:
    """Return the share of a caption's facts that are right: groups of things with their count, and printed text.

    Things that are named but absent count against it.
    """
    facts, said = _facts(true), _facts(answer)
    if not facts and not said:
        return 1.0 if "empty" in answer.lower() else 0.0
    return len(facts & said) / max(len(facts), len(said))


def has_keywords(answer: str, keywords: Sequence[str]) -> bool:
    """Return whether all keywords are words of the answer, ignoring case unless a keyword has capitals.

    A keyword with a ``|`` means any of several.

    >>> has_keywords("There are 3 red circles.", ["3", "circle|circles"]), has_keywords("It is red.", ["ed"])
    (True, False)
    """
    for keyword in keywords:
        found = False
        for word in keyword.split("|"):
            flags = re.IGNORECASE if word.islower() else 0
            found = found or re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, flags) is not None
        if not found:
            return False
    return True


def _facts(text: str) -> set[tuple[int, str, str]]:
    """Return the groups in a caption, in any order."""
    meaning = understand(text)
    groups: Counter[tuple[str, str]] = Counter()
    for number, colour, kind in meaning.things:
        groups[colour, kind] += number
    facts = {(number, colour, kind) for (colour, kind), number in groups.items()}
    return facts | {(1, "text", quoted) for quoted in meaning.quoted}


def _kinds(meaning: Meaning) -> list[tuple[int, str]]:
    """Return the shapes named, except "the red shape" that only repeats the question."""
    return [(number, kind) for number, _, kind in meaning.things if kind != "shape"]


def _number(answer: str) -> int | None:
    for word in re.findall(r"[a-z]+|\d+", answer.lower()):
        if word.isdigit():
            return int(word)
        if word in _NUMBERS and word not in ("a", "an", "the"):
            return _NUMBERS[word]
    return None


def _is_form(value: Any, answer: str) -> bool:
    """Return whether an answer is JSON with this value, whatever the order of its fields and lists."""
    try:
        return bool(_unordered(json.loads(answer)) == _unordered(value))
    except ValueError:
        return False


def _unordered(value: Any) -> Any:
    if isinstance(value, list):
        return sorted(map(_unordered, value), key=lambda each: json.dumps(each, sort_keys=True))
    return {key: _unordered(each) for key, each in value.items()} if isinstance(value, dict) else value


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()
