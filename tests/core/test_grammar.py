"""Descriptions of what an answer may be."""

import json
from typing import Any

import pytest

from mllama_cli.core.errors import UsageError
from mllama_cli.core.grammar import Grammar


def test_the_short_form_is_an_object_of_exactly_these_fields() -> None:
    schema = json.loads(Grammar.fields("name, total float,items [str], paid bool , n int, flags [bool]").source)
    assert schema == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "total": {"type": "number"},
            "items": {"type": "array", "items": {"type": "string"}},
            "paid": {"type": "boolean"},
            "n": {"type": "integer"},
            "flags": {"type": "array", "items": {"type": "boolean"}},
        },
        "required": ["name", "total", "items", "paid", "n", "flags"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name strr", "type that does not exist: 'strr'"),
        ("a b c", "not a name and a type: 'a b c'"),
        ("x [int", "not a name and a type"),
        ("a, a int", "the field a twice"),
        (" , ", "no fields"),
    ],
)
def test_a_wrong_short_form_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Grammar.fields(text)


def test_a_schema_comes_as_an_object_as_text_and_as_a_pydantic_model() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Receipt(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        shop: str
        total: float

    model = Grammar.schema(Receipt)
    assert (
        model == Grammar.schema(Receipt.model_json_schema()) == Grammar.schema(json.dumps(Receipt.model_json_schema()))
    )
    assert model.properties == ("shop", "total")


@pytest.mark.parametrize("wrong", ["{", "[1]", 5, None, "nul", "[" * 100_000])
def test_what_is_not_a_schema_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        Grammar.schema(wrong)


@pytest.mark.parametrize("wrong", [[], [""], ["a", "b", "a"]])
def test_impossible_choices_are_refused(wrong: list[str]) -> None:
    with pytest.raises(UsageError):
        Grammar.choices(wrong)
