"""Samples follow from their seed, are true to their scenes, and vary in wording."""

import re
from collections import Counter

import pytest

from mllama_cli.sketch.language.wording import SYNONYMS, plural
from mllama_cli.sketch.questions.answers import LIMITS
from mllama_cli.sketch.questions.grading import is_right
from mllama_cli.sketch.questions.samples import CARD_WEIGHTS, DRAWING_WEIGHTS, TASKS, Sample, make_group, make_sample
from mllama_cli.sketch.scenes.palette import COLOURS
from mllama_cli.sketch.scenes.scene import SHAPES, Scene

SEEDS = range(60)


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Sample]]:
    return {task: [make_sample(seed, task) for seed in SEEDS] for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_one_sample(task: str) -> None:
    one, other = make_sample(7, task), make_sample(7, task)
    assert (one.messages, one.answer, one.facts, one.task) == (other.messages, other.answer, other.facts, task)
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    more = [make_sample(seed, task) for seed in range(8, 12)]
    assert any(sample.messages != one.messages for sample in more)


def test_a_group_shares_its_pictures() -> None:
    for seed in range(12):
        group = make_group(seed, 4)
        assert [sample.messages for sample in group] == [sample.messages for sample in make_group(seed, 4)]
        if group[0].task not in ("about", "other"):
            assert all(sample.images is group[0].images for sample in group)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_by_their_own_grading(task: str, samples: dict[str, list[Sample]]) -> None:
    for sample in samples[task]:
        assert is_right(sample, sample.answer), (sample.question, sample.answer)


@pytest.mark.parametrize("task", TASKS[:11])
def test_another_answer_is_wrong(task: str, samples: dict[str, list[Sample]]) -> None:
    pairs = zip(samples[task], samples[task][1:], strict=False)
    accepted = [(one.answer, other.answer) for one, other in pairs if is_right(one, other.answer)]
    # Equal answers to equal facts occur: counts and colours of other things, "Nothing changed."
    assert len(accepted) < 0.45 * len(SEEDS)
    assert not is_right(samples[task][0], "")
    assert not is_right(samples[task][0], LIMITS)


@pytest.mark.parametrize("task", TASKS)
def test_many_wordings(task: str, samples: dict[str, list[Sample]]) -> None:
    assert len({_pattern(sample.question) for sample in samples[task]}) >= 30


def _pattern(question: str) -> str:
    """Return the wording without names, case and punctuation."""
    text = re.sub(r"[^a-z ]", "", question.lower())
    synonyms = [noun for nouns in SYNONYMS.values() for noun in nouns]
    for noun in (*SHAPES, *synonyms):
        text = text.replace(plural(noun), "x").replace(noun, "x")
    for colour in (*COLOURS, "grey"):
        text = text.replace(colour, "c")
    return text


def test_counts_are_counts(samples: dict[str, list[Sample]]) -> None:
    numbers = Counter()
    for sample in samples["count"]:
        if "ref" not in sample.facts:
            assert sample.facts["count"] == len({shape.colour for shape in sample.scenes[0].shapes})
            continue
        colour, kind = sample.facts["ref"]
        scene = sample.scenes[0]
        found = [s for s in scene.shapes if colour in (s.colour, None) and kind in (s.kind, None)]
        said = re.search(r"\d+", sample.answer)
        assert (int(said[0]) if said else 0) == len(found)
        numbers[len(found)] += 1
    assert max(numbers.values()) < 0.5 * len(SEEDS)
    assert set(numbers) >= {0, 1, 2, 3, 4}


def test_captions_name_everything_once(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["describe"]:
        scene = sample.scenes[0]
        words = re.sub(r'"[^"]*"', "", sample.answer).replace(".", "").replace(",", "").split()
        named = sum(_number(words[i - 2]) for i, word in enumerate(words) if _singular(word) in SHAPES)
        assert named == len(scene.shapes), sample.answer
        assert ("empty" in sample.answer) == (not scene.shapes and scene.lettering is None)


def _singular(word: str) -> str:
    return word if word in SHAPES else word.removesuffix("es") if word.endswith("sses") else word.removesuffix("s")


def _number(word: str) -> int:
    return int(word) if word.isdigit() else 1


def test_places_lie_well_inside_their_thirds(samples: dict[str, list[Sample]]) -> None:
    checked = 0
    for sample in samples["where"]:
        if sample.facts["kind"] != "where" or sample.facts["of"] == "text":
            continue
        scene = sample.scenes[0]
        [shape] = [s for s in scene.shapes if s.name == sample.facts["of"]]
        zone = sample.facts["zone"]
        for words, part in ((("left", "right"), shape.x / scene.width), (("top", "bottom"), shape.y / scene.height)):
            assert (words[0] in zone) == (part < 1 / 3 - 0.04)
            assert (words[1] in zone) == (part > 2 / 3 + 0.04)
        assert zone in sample.answer
        checked += 1
    assert checked > 20


def test_sizes_differ_plainly(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["compare"]:
        if sample.facts["kind"] != "extreme":
            continue
        sizes = sorted(sample.scenes[0].shapes, key=lambda s: s.size)
        end, next_ = (sizes[-1], sizes[-2]) if sample.facts["biggest"] else (sizes[0], sizes[1])
        ratio = end.size / next_.size
        assert ratio > 1.3 or ratio < 1 / 1.3
        assert end.name in sample.answer


def test_relations_hold(samples: dict[str, list[Sample]]) -> None:
    checked = 0
    for sample in samples["relation"]:
        if sample.facts["kind"] != "relation" or sample.facts["object"] is None:
            continue
        shapes = sample.scenes[0].shapes
        one = next(s for s in shapes if s.name == sample.facts["object"])
        [other] = [s for s in shapes if sample.facts["other"] in (s.name, s.kind)]
        relation = sample.facts["relation"]
        distance = one.x - other.x if relation in ("left of", "right of") else one.y - other.y
        assert abs(distance) > 0.1
        assert (distance < 0) == (relation in ("left of", "above"))
        checked += 1
    assert checked > 10


def test_what_is_absent_is_absent(samples: dict[str, list[Sample]]) -> None:
    checked = 0
    for sample in (s for group in samples.values() for s in group if s.facts["kind"] == "absent"):
        colour, kind = sample.facts["ref"]
        assert not any(colour in (s.colour, None) and kind in (s.kind, None) for s in sample.scenes[0].shapes)
        assert sample.answer.startswith(("There is no ", "There is nothing "))
        checked += 1
    assert checked > 5


def test_yes_and_no_are_balanced() -> None:
    for task in ("exists", "relation", "compare"):
        found = [make_sample(seed, task).answer.split(",")[0] for seed in range(200)]
        words = Counter(word for word in found if word in ("Yes", "No"))
        assert words.total() > 40
        assert 0.35 < words["Yes"] / words.total() < 0.65


def test_changes_are_what_differs(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["change"]:
        first, second = (Counter(s.name for s in scene.shapes) for scene in sample.scenes)
        if sample.facts["kind"] != "change":
            continue
        if sample.facts["change"] == "added":
            [name] = second - first
            assert name in sample.answer
            assert not first - second
        elif sample.facts["change"] == "removed":
            assert sample.answer == f"The {next(iter(first - second))} is gone."
        elif sample.facts["change"] == "colour":
            [old], [new] = first - second, second - first
            assert sample.answer == f"The {old} is now {new.split()[0]}."
        else:
            assert first == second


def test_printed_text_is_said_exactly(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["read"]:
        lettering = sample.scenes[0].lettering
        if lettering is None:
            assert sample.answer == "There is no text in the picture."
        else:
            assert sample.answer == 'It says "{}".'.format(lettering.text.replace("\n", " "))
            assert len(lettering.text) <= 12


def test_conversations_alternate_and_show_pictures_first(samples: dict[str, list[Sample]]) -> None:
    for sample in samples["follow-up"]:
        assert [turn.role for turn in sample.messages] == ["user", "assistant"] * (len(sample.messages) // 2) + ["user"]
        assert len(sample.messages) >= 3
        assert [turn.images for turn in sample.messages if turn.images] == [(0,)]


def test_canvases_and_colours_vary() -> None:
    sizes, names, grounds = set(), Counter(), Counter()
    for seed in range(150):
        scene = make_sample(seed, "describe").scenes[0]
        sizes.add(_orientation(scene))
        names.update(s.kind for s in scene.shapes)
        names.update(s.colour for s in scene.shapes)
        grounds[scene.background.kind] += 1
    assert sizes == {"wide", "long", "square", "tall", "high", "tiny"}
    assert set(names) == {*SHAPES, *COLOURS}
    assert len(grounds) >= 5


def _orientation(scene: Scene) -> str:
    width, height = scene.size
    if max(width, height) <= 112:
        return "tiny"
    ratio = width / height
    return next(
        name
        for limit, name in ((0.45, "tall"), (0.8, "high"), (1.25, "square"), (2.2, "wide"), (99, "long"))
        if ratio < limit
    )


def test_weights_name_tasks() -> None:
    assert set(DRAWING_WEIGHTS) | set(CARD_WEIGHTS) <= set(TASKS)
