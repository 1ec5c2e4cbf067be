"""Grammars: whatever tokens are chosen from those allowed, the answer is what was asked for."""

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from mllama_cli.core.errors import CheckpointError, UsageError
from mllama_cli.core.grammar import Grammar
from mllama_cli.processing.grammar import Constraint, GrammarTokenizer
from mllama_cli.processing.supported_grammars import require_supported
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.system.paths import built_in_model
from tests.processing.schemas import NAMES, SCHEMAS, closed

MOST_TOKENS = 1500
"""Longest answer that is tried: texts without a longest length may go on."""


class Model:
    """A tokenizer, and answers of tokens drawn from all that a grammar allows, each as likely as any other.

    Only what ends a value is more likely, or numbers would have hundreds of digits.
    """

    def __init__(self, folder: Path, vocab_size: int, eos: list[int]) -> None:
        self.tokenizer, self.vocab_size, self.eos = MllamaTokenizer.from_pretrained(folder), vocab_size, eos
        self.grammars = GrammarTokenizer(self.tokenizer, vocab_size, eos)
        self.endings = np.zeros(vocab_size, dtype=bool)
        self.endings[eos] = True
        for id_ in range(min(vocab_size, self.tokenizer.backend.get_vocab_size())):
            self.endings[id_] |= bool(re.fullmatch(rb'"?[\]}, ]+|"', self.tokenizer.token_bytes(id_)))

    def answer(self, grammar: Grammar, draws: random.Random) -> str | None:
        """Return a random answer; None if it is still not over after ``MOST_TOKENS``."""
        constraint, ids = self.grammars.constraint(grammar), list[int]()
        while len(ids) < MOST_TOKENS:
            (words,) = self.masks([constraint]).numpy()
            allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: self.vocab_size].astype(bool)
            ending = allowed & self.endings
            token = int(draws.choice(np.flatnonzero(ending if draws.random() < 0.2 and ending.any() else allowed)))
            constraint.push(token)
            if token in self.eos:
                assert constraint.complete
                return self.tokenizer.decode(ids)
            ids.append(token)
        return None

    def masks(self, constraints: list[Constraint]) -> torch.Tensor:
        masks = torch.zeros(len(constraints), (self.vocab_size + 31) // 32, dtype=torch.int32)
        self.grammars.write_masks(enumerate(constraints), masks)
        return masks

    def answers(self, grammar: Grammar, count: int) -> list[str]:
        draws = random.Random(grammar.source)
        answers = [self.answer(grammar, draws) for _ in range(count)]
        return [answer for answer in answers if answer is not None]


@pytest.fixture(scope="module")
def sketch() -> Model:
    return Model(built_in_model(), 1024, [1017, 1021, 1022])


@pytest.fixture(scope="module")
def released(shared: Path) -> Model:
    return Model(shared / "llama-3.2-11b-vision-instruct", 128256, [128001, 128008, 128009])


@pytest.fixture(params=["sketch", "released"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_random_answers_to_two_hundred_schemas_are_valid(model: Model) -> None:
    assert len(SCHEMAS) >= 200
    ended = 0
    for name, schema in SCHEMAS.items():
        checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        answers = model.answers(Grammar.schema(schema), 2)
        for answer in answers:
            assert not list(checker.iter_errors(json.loads(answer))), (name, answer)
        ended += len(answers)
    assert ended > 0.98 * 2 * len(SCHEMAS), "only texts without a longest length may go on"


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-\d{4}",
        "[a-z]{1,9}(, [a-z]{1,9}){0,3}",
        "(?i)yes|no",
        "ä{2,5}",
        r"[a-z.]{1,8}@[a-z]{1,8}\.(com|org)",
        "^a$",
        ".{5}",
        r'"[^"]{0,9}"',
    ],
)
def test_random_answers_match_a_pattern_as_a_whole(model: Model, pattern: str) -> None:
    answers = model.answers(Grammar.regex(pattern), 5)
    assert answers
    assert all(re.fullmatch(pattern, answer) for answer in answers)


def test_random_answers_are_choices_to_the_letter(model: Model) -> None:
    texts = ["cat", "cat fish", 'a "b"', "line\nbreak", "é/ß", "back\\slash", "<|eot_id|>", "😀", " ", "{x}", "\\n"]
    answers = {answer for _ in range(30) for answer in model.answers(Grammar.choices(texts), 1)}
    answers |= {answer for text in texts for answer in model.answers(Grammar.choices([text]), 2)}
    assert answers == set(texts)


def test_any_object_is_an_object(model: Model) -> None:
    assert all(isinstance(json.loads(answer), dict) for answer in model.answers(Grammar.json_object(), 10))


def test_json_is_written_on_one_line_as_python_does(model: Model) -> None:
    schema = closed({"a": {"const": 1}, "b": {"type": "array", "items": {"const": "x"}, "minItems": 2, "maxItems": 2}})
    assert model.answers(Grammar.schema(schema), 2) == ['{"a": 1, "b": ["x", "x"]}'] * 2


@pytest.mark.parametrize("eos", [(), (1_000_000,)])
def test_a_model_that_cannot_end_an_answer_is_refused(sketch: Model, eos: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="no token that ends an answer"):
        GrammarTokenizer(sketch.tokenizer, 1024, eos)


def test_several_masks_are_computed_together(model: Model) -> None:
    grammars = [Grammar.choices(["a"]), Grammar.json_object(), Grammar.regex("[0-9]+")]
    alone = [model.masks([model.grammars.constraint(grammar)])[0] for grammar in grammars]
    together = model.masks([model.grammars.constraint(grammar) for grammar in grammars])
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]
    assert len({tuple(row.tolist()) for row in together}) == 3


def test_an_answer_may_have_begun(sketch: Model) -> None:
    grammar = Grammar.choices(["red circle", "red star"])
    constraint = sketch.grammars.constraint(grammar, "red ")
    for token in sketch.tokenizer.encode("star"):
        constraint.push(token)
    assert constraint.complete
    with pytest.raises(UsageError, match="cannot begin with 'blue'"):
        sketch.grammars.constraint(grammar, "blue")


NO_IBAN = {"type": "string", "format": "iban"}
ROWS = closed({"rows": {"type": "array", "items": closed({"x": {"if": {}, "then": {}}})}})
REFUSED: list[tuple[dict[str, Any], str]] = [
    (closed({"a": {"not": {}}}), "The schema's not at #/properties/a cannot"),
    ({"type": "array", "uniqueItems": True}, "The schema's uniqueItems at its top level cannot"),
    (ROWS, "if and then at #/properties/rows/items/properties/x"),
    (closed({"a": {"$ref": "#/$defs/d"}}) | {"$defs": {"d": NO_IBAN}}, "format 'iban' at #/.defs/d"),
    (closed({"a/b": {"type": "string", "pattern": "(x"}}), r"pattern '\(x' at #/properties/a~1b .*: unclosed group"),
    (closed({"a": {"type": "string", "pattern": "x(?=y)"}}), "pattern .* at #/properties/a .*: look-around"),
    (closed({"a": {"anyOf": [{"type": "string"}, {"type": "strin"}]}}), "type 'strin' at #/properties/a/anyOf/1"),
    ({"$ref": "http://example.org/schema"}, r"\$ref 'http://example.org/schema' at its top level"),
    (closed({"a": {"type": "integer", "minimum": 5, "maximum": 3}}), "minimum .5. is greater than maximum .3."),
    (closed({"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}), "oneOf at #/properties/a"),
    ({"x-guidance": {"lenient": True}, "not": {}}, "The schema's not at its top level"),
    ({"enum": []}, "anyOf is empty"),
]


@pytest.mark.parametrize(("schema", "words"), REFUSED)
def test_a_schema_that_cannot_be_enforced_is_refused_with_its_keyword_and_place(
    schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        require_supported(Grammar.schema(schema))
    assert "\n" not in refusal.value.message
    assert refusal.value.hint


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(80):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="nested more than"):
        require_supported(Grammar.schema(schema))


@pytest.mark.parametrize("pattern", ["(a", "[", "a(?=b)", r"(a)\1", r"a\b", "a{2,1}", "a{,3}", "a^"])
def test_a_broken_pattern_is_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(UsageError, match=f"^The pattern {re.escape(repr(pattern))} cannot be enforced: [^\n]+$"):
        require_supported(Grammar.regex(pattern))


def test_names_of_all_kinds_keep_their_order() -> None:
    assert Grammar.schema(closed({name: {} for name in NAMES})).properties == tuple(NAMES)


def test_objects_have_the_listed_properties_alone_unless_the_schema_says_more(sketch: Model) -> None:
    listed = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert set(sketch.answers(Grammar.schema(listed), 5)) == {'{"a": 1}'}
    more = {**listed, "additionalProperties": {"const": 2}, "maxProperties": 2, "minProperties": 2}
    assert all(len(json.loads(answer)) == 2 for answer in sketch.answers(Grammar.schema(more), 5))
    other = {"type": "object", "properties": {"b": {"const": 3}}, "required": ["b"]}
    both = {"allOf": [listed, other], "maxProperties": 2}
    assert sketch.answers(Grammar.schema(both), 3) == ['{"a": 1, "b": 3}'] * 3


def test_a_property_may_be_called_as_a_keyword(sketch: Model) -> None:
    names = ["properties", "enum", "allOf", "const", "$ref"]
    schema = {"type": "object", "properties": {name: {"const": name} for name in names}, "required": names}
    assert [json.loads(answer) for answer in sketch.answers(Grammar.schema(schema), 2)] == [{n: n for n in names}] * 2
