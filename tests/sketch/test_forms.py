"""Answers in JSON: true of their drawings, as their schemas want them, and in the tokens that decoding feeds."""

import json
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import torch

from mllama_cli.core.grammar import Grammar
from mllama_cli.processing.grammar import GrammarTokenizer
from mllama_cli.processing.tokenizer import MllamaTokenizer
from mllama_cli.sketch.questions.samples import Sample, make_group, make_sample
from mllama_cli.sketch.training.dataset import encode_sample
from mllama_cli.sketch.training.form_tokens import form_pieces
from mllama_cli.sketch.training.vocabulary import VOCABULARY_SIZE


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(seed, "json") for seed in range(150)]


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> MllamaTokenizer:
    return MllamaTokenizer.from_pretrained(vocabulary)


def test_values_fit_their_schemas_in_the_order_of_the_fields(samples: list[Sample]) -> None:
    held = [sample for sample in samples if sample.schema is not None]
    assert 0.6 * len(samples) < len(held) < len(samples)
    for sample in held:
        assert sample.schema is not None
        value = json.loads(sample.answer)
        jsonschema.Draft202012Validator(sample.schema).validate(value)
        assert list(value) == list(sample.schema.get("properties", value))


def test_a_question_that_no_schema_holds_names_the_fields_or_gets_the_usual_ones(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.schema is None:
            value = json.loads(sample.answer)
            things = value.get("shapes")
            names = list(things[0]) if things and isinstance(things[0], dict) else list(value)
            assert "JSON" in sample.question
            assert all(name in sample.question for name in names) or names in (["color", "shape", "count"], ["shapes"])


def test_numbers_colours_and_shapes_are_those_of_the_drawing(samples: list[Sample]) -> None:
    lists = single = 0
    for sample in samples:
        shapes = Counter(f"{shape.colour} {shape.kind}" for shape in sample.scenes[0].shapes)
        value = json.loads(sample.answer)
        for things in value.values():
            if isinstance(things, list) and things and isinstance(things[0], dict) and _has_number(things[0]):
                said = {frozenset(map(str, thing.values())) for thing in things}
                assert said == {frozenset((*name.split(" "), str(n))) for name, n in shapes.items()}
                lists += 1
        if len(shapes) == 1 and isinstance(value.get("shape"), str):
            [name] = shapes
            assert value["shape"] == name.split(" ")[1]
            single += 1
    assert lists > 3
    assert single > 0


def _has_number(thing: dict[str, object]) -> bool:
    return any(isinstance(each, int) for each in thing.values())


def test_a_group_can_have_more_questions_answered_in_json() -> None:
    found = 0
    for seed in range(12):
        plain, more = make_group(seed, 4), make_group(seed, 4, forms=3)
        assert [sample.messages for sample in more[: len(plain)]] == [sample.messages for sample in plain]
        assert all(sample.task == "json" and sample.images is more[0].images for sample in more[len(plain) :])
        assert len(more) <= len(plain) + 3
        found += len(more) - len(plain)
    assert found > 12


def test_tokens_are_those_that_decoding_feeds(samples: list[Sample], tokenizer: MllamaTokenizer) -> None:
    eot = tokenizer.special_ids["<|eot_id|>"]
    grammars = GrammarTokenizer(tokenizer, VOCABULARY_SIZE, [eot])
    masks = torch.zeros(1, VOCABULARY_SIZE // 32, dtype=torch.int32)
    for sample in samples[:40]:
        pieces = encode_sample(tokenizer, sample)
        answer = form_pieces(tokenizer, sample.answer, sample.schema)
        assert pieces[-len(answer) - 1 :] == [*answer, ([eot], True)]
        assert tokenizer.decode([id_ for ids, _ in answer for id_ in ids]) == sample.answer
        if sample.schema is None:
            assert all(chosen for _, chosen in answer)
            continue
        assert not answer[0][1], "the first tokens are forced, so that they are not learned as an answer"
        constraint = grammars.constraint(Grammar.schema(sample.schema))
        for ids, chosen in answer:
            for id_ in ids:
                assert (constraint.forced[:1] == [id_]) is not chosen
                grammars.write_masks([(0, constraint)], masks)
                assert int(masks[0, id_ // 32]) >> (id_ % 32) & 1
                constraint.push(id_)
        assert constraint.complete


def test_a_text_that_does_not_fit_its_schema_is_refused(tokenizer: MllamaTokenizer) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for text in ('{"m": 3}', '{"n": 3'):
        with pytest.raises(ValueError, match="does not fit"):
            form_pieces(tokenizer, text, schema)
