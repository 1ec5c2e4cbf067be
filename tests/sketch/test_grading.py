"""Grading goes by the meaning of an answer."""

import pytest

from mllama_cli.sketch.questions.grading import caption_score, is_right, understand
from mllama_cli.sketch.questions.samples import Sample, Turn


def sample(answer: str, **facts: object) -> Sample:
    return Sample((Turn("user", "?"),), (), answer, "any", dict(facts))


@pytest.mark.parametrize(
    ("true", "facts", "answer", "right"),
    [
        ("There are 3 circles.", {"kind": "count", "count": 3}, "I count three circles.", True),
        ("There are 3 circles.", {"kind": "count", "count": 3}, "There are 4 circles.", False),
        ("There are no circles.", {"kind": "count", "count": 0}, "None.", True),
        ("The circle is red.", {"kind": "colour", "colours": ["red"]}, "Red.", True),
        ("The circle is red.", {"kind": "colour", "colours": ["red"]}, "The circle is red and blue.", False),
        ("The circles are red and blue.", {"kind": "colour", "colours": ["red", "blue"]}, "blue and red", True),
        ("The red shape is a star.", {"kind": "shape"}, "The red shape is a star.", True),
        ("The red shape is a star.", {"kind": "shape"}, "A star.", True),
        ("The red shape is a star.", {"kind": "shape"}, "The red shape is a cross.", False),
        ("The red shapes are 2 stars.", {"kind": "shape"}, "The red shapes are 3 stars.", False),
        ("The star is in the top left.", {"kind": "where"}, "The star is at the top left", True),
        ("The star is in the top left.", {"kind": "where"}, "The star is on the left.", False),
        ("Yes, there are 2 stars.", {"kind": "exists"}, "Yes, there are 2 stars.", True),
        ("Yes, there are 2 stars.", {"kind": "exists"}, "No, there is no star.", False),
        ("Yes, there are 2 stars.", {"kind": "exists"}, "Yes, there are 3 stars.", False),
        ("The star is bigger.", {"kind": "bigger"}, "The star is bigger!", True),
        ("The star is bigger.", {"kind": "bigger"}, "The ring is bigger.", False),
        ("The red star is left of the ring.", {"kind": "relation"}, "The red star is right of the ring.", False),
        ("The red star is gone.", {"kind": "change"}, "The red star is now blue.", False),
        ("The red star moved up.", {"kind": "change"}, "The red star moved down.", False),
        ("There is no star in the picture.", {"kind": "absent"}, "There is a star in the picture.", False),
        ('It says "Ab1".', {"kind": "read", "text": "Ab1"}, 'It says "Ab1".', True),
        ('It says "Ab1".', {"kind": "read", "text": "Ab1"}, 'It says "AB1".', False),
    ],
)
def test_is_right(true: str, facts: dict[str, object], answer: str, right: bool) -> None:
    assert is_right(sample(true, **facts), answer) is right
    assert is_right(sample(true, **facts), true)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("I see a blue square and 2 red circles.", 1.0),
        ("I see 2 red circles.", 0.5),
        ("I see 2 red circles, a blue square and a star.", 2 / 3),
        ("I see 3 red circles and a blue square.", 0.5),
        ("I see an empty picture.", 0.0),
    ],
)
def test_caption_score(answer: str, score: float) -> None:
    assert caption_score("I see 2 red circles and a blue square.", answer) == pytest.approx(score)


def test_printed_text_is_a_fact_of_a_caption() -> None:
    true = 'I see a red circle and the blue text "HELLO".'
    assert caption_score(true, true) == 1.0
    assert caption_score(true, 'I see a red circle and the blue text "HELP".') < 1.0
    assert understand(true).quoted == ("HELLO",)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"shapes": [{"color": "red", "n": 2}, {"color": "blue", "n": 1}]}', True),
        ('{"shapes": [{"n": 1, "color": "blue"}, {"n": 2, "color": "red"}]}', True),
        ('{"shapes": [{"color": "red", "n": 1}, {"color": "blue", "n": 1}]}', False),
        ('{"shapes": [{"color": "red", "n": 2}]}', False),
        ('{"shapes": [{"color": "red", "n": 2', False),
        ("I see 2 red shapes and a blue shape.", False),
    ],
)
def test_json_is_right_by_its_value_in_any_order(answer: str, right: bool) -> None:
    value = {"shapes": [{"color": "red", "n": 2}, {"color": "blue", "n": 1}]}
    assert is_right(sample("", kind="form", value=value), answer) is right
