"""Answers held to grammars on a GPU: those of the CPU, alone and in a batch. ``pytest -m gpu tests/gpu``."""

import json

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Token
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine, load
from mllama_cli.processing.images import encode_image
from tests.drawings import opened

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KIND = Grammar.schema(
    {
        "type": "object",
        "properties": {"kind": {"enum": ["star", "ring"]}, "name": {"type": "string", "maxLength": 12}},
        "required": ["kind", "name"],
    }
)
FORMS = [None, KIND, Grammar.choices(["red ring", "blue star"]), None, Grammar.regex("[a-z]{3}-[0-9]{2}"), KIND]
SAMPLINGS = [
    Sampling(grammar=form, temperature=key % 2 * 2.0, seed=key, max_tokens=64) for key, form in enumerate(FORMS)
]
TALKS = [
    Conversation.ask("Describe this.", (encode_image(opened(key)),) if key % 2 else ()) for key in range(len(FORMS))
]


@pytest.fixture(scope="module")
def engines() -> tuple[Engine, Engine]:
    cpu, gpu = (load("sketch", device=device, dtype="float32", vision=True) for device in ("cpu", "cuda"))
    return cpu, gpu


def said(engine: Engine, key: int) -> list[int]:
    return [event.id for event in engine.stream(TALKS[key], SAMPLINGS[key]) if isinstance(event, Token)]


@pytest.mark.parametrize("key", range(len(FORMS)))
def test_captured_steps_that_wait_for_masks_answer_as_a_cpu(engines: tuple[Engine, Engine], key: int) -> None:
    cpu, gpu = engines
    assert said(gpu, key) == said(cpu, key)
    assert gpu.fallback_reason == ""


def test_rows_of_a_batch_keep_to_their_own_grammars(engines: tuple[Engine, Engine]) -> None:
    cpu, gpu = engines
    answers = []
    for engine in (cpu, gpu):
        requests = [
            BatchRequest(key, engine.processor(talk), sampling=sampling)
            for key, (talk, sampling) in enumerate(zip(TALKS, SAMPLINGS, strict=True))
        ]
        answers.append({reply.key: reply for reply in run_batch(engine.model, requests, slots=4)})
    for key, form in enumerate(FORMS):
        assert answers[1][key].error is None
        assert answers[1][key].ids == answers[0][key].ids
        if form is KIND:
            assert set(json.loads(answers[1][key].text)) == {"kind", "name"}


def test_probabilities_of_choices_are_those_of_a_cpu(engines: tuple[Engine, Engine]) -> None:
    found = [
        engine.session().probabilities_after(engine.processor(TALKS[1]), ["red ring", "blue star"])
        for engine in engines
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
