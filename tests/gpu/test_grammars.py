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
from mllama_cli.kernels.ops import best_allowed
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
NAMES = ("merchant_name", "total_amount_of_all_items")
CERTAIN = Grammar.schema(
    {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in NAMES},
        "required": list(NAMES),
        "additionalProperties": False,
    }
)
"""Most of its tokens leave no choice."""
FORMS = [
    None,
    KIND,
    Grammar.choices(["red ring", "blue star"]),
    None,
    Grammar.regex("[a-z]{3}-[0-9]{2}"),
    KIND,
    CERTAIN,
    CERTAIN,
]
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


def test_certain_tokens_take_few_steps(engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[object] = []
    replay = torch.cuda.CUDAGraph.replay
    said(engines[1], 6)

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    ids = said(engines[1], 6)
    assert len(ids) > 15
    assert len(replays) < len(ids), "a step and a choice for each token would be twice as many"


def test_log_probabilities_of_a_held_answer_are_those_of_a_cpu(engines: tuple[Engine, Engine]) -> None:
    sampling = Sampling(grammar=CERTAIN, logprobs=2, max_tokens=64)
    answers = [[each for each in e.stream(TALKS[0], sampling) if isinstance(each, Token)] for e in engines]
    assert [each.id for each in answers[1]] == [each.id for each in answers[0]]
    logprobs = [[each.logprob or 0.0 for each in answer] for answer in answers]
    assert logprobs[1] == pytest.approx(logprobs[0], abs=1e-3)


def test_many_rows_choose_the_best_of_what_their_masks_allow() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(33, 128_256, generator=generator).bfloat16()
    words = torch.randint(-(2**31), 2**31, (40, 4008), generator=generator, dtype=torch.int32)
    words[3] = 0
    words[3, 4007] = -(1 << 31)
    rows = torch.arange(33)
    rows[::5] = -1
    logits[4, 7], logits[6, :] = torch.inf, torch.nan
    exact = best_allowed(logits, words, rows)
    with torch.inference_mode():
        ours = best_allowed(*(tensor.cuda() for tensor in (logits, words, rows)))
    assert ours.tolist() == exact.tolist()
    assert exact[3] == 128_255


def test_probabilities_of_choices_are_those_of_a_cpu(engines: tuple[Engine, Engine]) -> None:
    found = [
        engine.session().probabilities_after(engine.processor(TALKS[1]), ["red ring", "blue star"])
        for engine in engines
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
