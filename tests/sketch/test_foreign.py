"""The drawings by other programs are all listed, and their answers can be given."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mllama_cli.sketch.questions.grading import has_keywords
from mllama_cli.sketch.questions.samples import TASKS

FOLDER = Path(__file__).parent / "foreign"
ITEMS = json.loads((FOLDER / "questions.json").read_text())


def test_every_picture_is_there_and_asked_about() -> None:
    named = {name for item in ITEMS for name in item["images"]}
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".png", ".jpg")}
    assert named == files
    assert len(files) >= 60
    assert len(ITEMS) >= 150
    assert sum((FOLDER / name).stat().st_size for name in files) < 1_500_000
    for name in files:
        with Image.open(FOLDER / name) as image:
            image.load()


def test_tasks_and_keywords_are_known() -> None:
    assert {item["task"] for item in ITEMS} <= set(TASKS)
    assert {"describe", "count", "colour", "shape", "where", "compare", "exists", "relation", "read", "change"} == {
        item["task"] for item in ITEMS
    }
    assert all(item["keywords"] and item["question"] for item in ITEMS)


@pytest.mark.parametrize(
    ("answer", "keywords", "right"),
    [
        ("There are 3 circles.", ["3"], True),
        ("There are 13 circles.", ["3"], False),
        ("No, there is no star.", ["no|0"], True),
        ("I see a red circle and 2 blue squares.", ["2 blue squares", "red circle"], True),
        ("I see a red circle.", ["blue|green"], False),
        ('It says "HELLO".', ["HELLO"], True),
        ('It says "hello".', ["HELLO"], False),
        ("The star is in the top left.", ["top left"], True),
        ("The star is on the left.", ["top left"], False),
        ("", ["x"], False),
    ],
)
def test_keywords_are_words(answer: str, keywords: list[str], right: bool) -> None:
    assert has_keywords(answer, keywords) is right
