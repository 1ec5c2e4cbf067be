"""The choice of tokens, compared with transformers' logits processors and a reference in plain Python."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from mllama_cli.core.config import GenerationConfig
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine import sampling as module
from mllama_cli.engine.logits import Settings, Survivors, draw
from mllama_cli.engine.sampling import UNIFORMS_RING, ChosenToken, Method, Sampler

CPU = torch.device("cpu")
VOCAB = 300
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)) * 4
STEPS = 24
MIXED = [
    Sampling(),
    Sampling(temperature=0.6, top_p=0.9, seed=1),
    Sampling(temperature=1.3, top_k=7, seed=2),
    Sampling(repetition_penalty=1.4),
    Sampling(temperature=1.0, min_p=0.05, seed=3),
    Sampling(temperature=0.8, top_k=40, top_p=0.5, min_p=0.1, repetition_penalty=1.2, seed=4),
    Sampling(frequency_penalty=1.5, presence_penalty=0.7),
    Sampling(temperature=1.5, frequency_penalty=-1.0, presence_penalty=2.0, seed=5),
    Sampling(logit_bias={3: 9.0, 200: -100.0}),
    Sampling(temperature=2.0, logit_bias={17: 4.5}, logprobs=3, seed=6),
    Sampling(logprobs=0),
    Sampling(temperature=1.0, seed=7),
]
"""Settings of the requests in a batch."""


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What is left of each token's probability: float64 [vocab_size]."""
    left = Survivors.of(logits[None], Settings.columns(Settings.row(sampling, len(logits))[None]))
    kept = int(left.kept)
    weights = left.reached[0].diff(prepend=torch.zeros(1))[:kept]
    return torch.zeros(len(logits), dtype=torch.float64).scatter(0, left.order[0, :kept], weights / weights.sum())


def sampler_of(*requests: Sampling, prompt: tuple[int, ...] = (), vocab_size: int = VOCAB) -> Sampler:
    sampler = Sampler(len(requests), vocab_size, CPU)
    for row, sampling in enumerate(requests):
        sampler.admit(row, sampling, prompt)
    return sampler


def chosen(sampler: Sampler, logits: Tensor, first: int = 0) -> list[ChosenToken]:
    results = sampler.choose(logits, first)
    tokens = [result for result in results if isinstance(result, ChosenToken)]
    assert len(tokens) == len(results)
    return tokens


def reference(logits: Tensor, sampling: Sampling, prompt: list[int], generated: list[int], uniform: float) -> int:
    """One choice, token by token, as the docstrings say it."""
    scores = []
    for id_, score in enumerate(logits.tolist()):
        score += sampling.logit_bias.get(id_, 0)
        if id_ in prompt or id_ in generated:
            score = score * sampling.repetition_penalty if score < 0 else score / sampling.repetition_penalty
        score -= generated.count(id_) * sampling.frequency_penalty + (id_ in generated) * sampling.presence_penalty
        scores.append(score / (sampling.temperature or 1))
    ranks = sorted(range(len(scores)), key=lambda id_: -scores[id_])
    if not sampling.temperature:
        return ranks[0]
    weights = [math.exp(scores[id_] - scores[ranks[0]]) for id_ in ranks]
    if sampling.top_k:
        weights = [weight for weight in weights if weight >= weights[min(sampling.top_k, len(weights)) - 1]]
    mass = math.fsum(weights)
    weights = [w for rank, w in enumerate(weights) if not rank or math.fsum(weights[:rank]) < sampling.top_p * mass]
    weights = [weight for weight in weights if weight >= sampling.min_p]
    target, reached = uniform * math.fsum(weights), 0.0
    for id_, weight in zip(ranks, weights, strict=False):
        reached += weight
        if reached > target:
            return id_
    return ranks[len(weights) - 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.5, "min_p": 0.1},
        {"temperature": 2.0, "top_p": 1e-9},
        {"temperature": 1.0, "top_k": 100000},
        {"temperature": 1.0, "min_p": 1.0},
    ],
    ids=str,
)
def test_filters_equal_transformers(settings: dict[str, float]) -> None:
    transformers = pytest.importorskip("transformers")
    scores = LOGITS[None] / settings["temperature"]
    if "top_k" in settings:
        scores = transformers.TopKLogitsWarper(min(int(settings["top_k"]), VOCAB))(None, scores)
    if "top_p" in settings:
        scores = transformers.TopPLogitsWarper(settings["top_p"])(None, scores)
    if "min_p" in settings:
        scores = transformers.MinPLogitsWarper(settings["min_p"])(None, scores)
    expected = scores.softmax(-1)[0]
    ours = probabilities(LOGITS, Sampling(**settings))  # type: ignore[arg-type]
    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours.float(), expected, atol=1e-6, rtol=1e-5)


def test_repetition_penalty_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    prompt = [3, 5, 5, 299]
    scores = transformers.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), LOGITS[None].clone())[0]
    image_token = VOCAB
    sampling = Sampling(repetition_penalty=1.7)
    assert chosen(sampler_of(sampling, prompt=(*prompt, image_token)), LOGITS[None])[0].id == int(scores.argmax())
    boosted = LOGITS.clone()
    boosted[5] = LOGITS.max() + 0.1
    token = chosen(sampler_of(sampling, prompt=(*prompt, image_token)), boosted[None])[0].id
    assert token != 5, "a seen token must lose against an unseen one that is nearly as likely"


@pytest.mark.parametrize("sampling", MIXED, ids=str)
def test_choices_are_those_of_the_reference(sampling: Sampling) -> None:
    generator, prompt = torch.Generator().manual_seed(sampling.seed or 0), [1, 2, 17]
    uniforms = torch.rand(STEPS, generator=generator, dtype=torch.float64).tolist()
    sampler, generated = sampler_of(sampling, prompt=tuple(prompt)), list[int]()
    for uniform, logits in zip(uniforms, many_logits(0), strict=True):
        token = chosen(sampler, logits[None])[0].id
        assert token == reference(logits, sampling, prompt, generated, uniform)
        generated.append(token)


def test_draw_number_n_uses_uniform_n() -> None:
    logits = torch.zeros(VOCAB)  # equal: ranks are ids
    count = 2 * UNIFORMS_RING + 3
    expected = torch.rand(count, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * VOCAB
    sampler = sampler_of(Sampling(temperature=0.5, seed=9))
    assert [chosen(sampler, logits[None])[0].id for _ in range(count)] == expected.long().tolist()


def many_logits(request: int) -> Tensor:
    """Logits of each step of a request [STEPS, VOCAB], rounded to bfloat16 so that many of them are equal."""
    generator = torch.Generator().manual_seed(100 + request)
    return (torch.randn(STEPS, VOCAB, generator=generator) * 3).bfloat16()


def answer_alone(request: int, sampling: Sampling) -> list[ChosenToken]:
    sampler = sampler_of(sampling, prompt=(request, 5))
    return [chosen(sampler, logits[None])[0] for logits in many_logits(request)]


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch_whose_rows_come_and_go() -> None:
    count = 32
    requests = [MIXED[request % len(MIXED)] for request in range(count)]
    expected = [answer_alone(request, sampling) for request, sampling in enumerate(requests)]
    logits = [many_logits(request) for request in range(count)]
    answers: list[list[ChosenToken]] = [[] for _ in range(count)]
    sampler, running, waiting = Sampler(count, VOCAB, CPU), list[int](), list(range(count))
    shuffled = random.Random(0)
    while running or waiting:
        if waiting:
            admitted, first = [waiting.pop(0) for _ in range(min(len(waiting), 5))], len(running)
            for row, request in enumerate(admitted, first):
                sampler.admit(row, requests[request], (request, 5))
            running += admitted
        else:
            first = 0
        rows = running[first:]
        for request, token in zip(
            rows, chosen(sampler, torch.stack([logits[r][len(answers[r])] for r in rows]), first), strict=True
        ):
            answers[request].append(token)
        for row in sorted(range(len(running)), reverse=True):
            # Some leave early, so that others move while they are answered.
            if len(answers[running[row]]) == STEPS or shuffled.random() < 0.02:
                sampler.release(row, len(running) - 1)
                running[row] = running[-1]
                running.pop()
    assert sum(len(answer) == STEPS for answer in answers) > 8
    for answer, alone in zip(answers, expected, strict=True):
        assert [token.id for token in answer] == [token.id for token in alone[: len(answer)]]
        assert [token.logprob is None for token in answer] == [token.logprob is None for token in alone[: len(answer)]]


def test_choosing_as_a_captured_step_does_gives_the_same() -> None:
    requests = [sampling for sampling in MIXED if Method.of(sampling) == Method(adjusts=True, draws=True)]
    sampler, way = Sampler(len(requests), VOCAB, CPU), Method(adjusts=True, draws=True)
    with torch.inference_mode():
        sampler.tokens(torch.zeros(len(requests), VOCAB), sampler.all_rows, way)  # capturing comes before any request
    for row, sampling in enumerate(requests):
        sampler.admit(row, sampling, (row, 5))
    answers = []
    for step in range(STEPS):
        for row in range(len(requests)):
            sampler.refill(row)
        logits = torch.stack([many_logits(row)[step] for row in range(len(requests))])
        with torch.inference_mode():
            answers.append(sampler.tokens(logits, sampler.all_rows, way).tolist())
    for row, sampling in enumerate(requests):
        assert [ids[row] for ids in answers] == [token.id for token in answer_alone(row, sampling)]


def test_rows_that_draw_are_sorted_together_and_greedy_ones_never(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_rows = []
    of = Survivors.of

    def counted(scores: Tensor, settings: Settings) -> Survivors:
        sorted_rows.append(len(scores))
        return of(scores, settings)

    monkeypatch.setattr(module.Survivors, "of", counted)
    monkeypatch.setattr(module, "MAX_SORTED_ROWS", 4)
    some = Sampling(temperature=1.0, seed=1)
    chosen(sampler_of(*[Sampling()] * 8), LOGITS.repeat(8, 1))
    assert sorted_rows == []
    chosen(sampler_of(Sampling(), some, some, Sampling(repetition_penalty=2.0), some), LOGITS.repeat(5, 1))
    assert sorted_rows == [3]
    chosen(sampler_of(*[some] * 6), LOGITS.repeat(6, 1))
    assert sorted_rows == [3, 4, 2]


def test_sampled_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampler = sampler_of(Sampling(temperature=1.0, seed=1), vocab_size=4)
    counts = Counter(chosen(sampler, logits[None])[0].id for _ in range(4000))
    frequencies = torch.tensor([counts[id_] / 4000 for id_ in range(4)])
    torch.testing.assert_close(frequencies, logits.softmax(-1), atol=0.03, rtol=0)


def test_another_seed_gives_other_tokens_and_none_gives_new_ones() -> None:
    def drawn(seed: int | None) -> list[int]:
        sampler = sampler_of(Sampling(temperature=1.5, seed=seed))
        return [chosen(sampler, LOGITS[None])[0].id for _ in range(40)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.2499, 0), (0.25, 2), (0.4999, 2), (0.5, 3), (0.75, 4), (1 - 2**-53, 4)]
)
def test_a_uniform_on_a_boundary_belongs_to_the_next_token(uniform: float, token: int) -> None:
    logits = torch.tensor([2.0, -torch.inf, 2.0, 2.0, 2.0])
    left = Survivors.of(logits[None], Settings.columns(Settings.row(Sampling(temperature=1), 5)[None]))
    assert int(left.kept) == 4, "what is masked is never drawn"
    assert int(draw(left, torch.tensor([[uniform]], dtype=torch.float64))) == token


def test_sums_that_equal_top_p_but_for_rounding_are_equal() -> None:
    for count in (3, 7, 10, 30):
        for kept in range(1, count):
            logits = torch.full((count,), 1.7)
            assert int((probabilities(logits, Sampling(temperature=1, top_p=kept / count)) > 0).sum()) == kept


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.1}], ids=str)
def test_what_is_not_finite_is_an_error_of_its_row_alone(settings: dict[str, Any], value: float) -> None:
    sampling = Sampling(seed=3, **settings)
    rows = torch.stack((LOGITS, LOGITS, LOGITS))
    rows[1] = -torch.inf
    rows[1, 7:9] = value
    before, error, after = sampler_of(sampling, sampling, sampling).choose(rows)
    assert before == after == chosen(sampler_of(sampling), LOGITS[None])[0]
    assert isinstance(error, MllamaError)
    assert "NaN" in str(error)


def test_masked_tokens_do_not_affect_the_others() -> None:
    masked = LOGITS.clone()
    masked[10:] = -torch.inf
    for sampling in (Sampling(), Sampling(temperature=3.0, seed=1), Sampling(temperature=1.0, top_k=50, seed=1)):
        sampler = sampler_of(sampling)
        assert all(chosen(sampler, masked[None])[0].id < 10 for _ in range(100))


def test_log_probabilities_are_those_of_the_model_whatever_chooses() -> None:
    requests = (
        Sampling(logprobs=5),
        Sampling(temperature=3.0, top_k=50, logit_bias={4: 20}, logprobs=0, seed=1),
        Sampling(temperature=3.0, seed=2),
        Sampling(repetition_penalty=1.5, logprobs=20),
    )
    logits = torch.stack((LOGITS, LOGITS.flip(0), LOGITS, -LOGITS))
    expected = logits.log_softmax(-1)
    tokens = chosen(sampler_of(*requests), logits)
    for token, row, sampling in zip(tokens, expected, requests, strict=True):
        if sampling.logprobs is None:
            assert (token.logprob, token.top_logprobs) == (None, ())
            continue
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-5)
        values, ids = row.topk(sampling.logprobs)
        assert [id_ for id_, _ in token.top_logprobs] == ids.tolist()
        assert [value for _, value in token.top_logprobs] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2}, {"max_tokens": 0},
     {"repetition_penalty": 0}, {"stop": ("",)}],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_defaults_come_from_the_checkpoint_and_flags_override_them() -> None:
    released = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9)
    assert Sampling.from_defaults(released) == Sampling(temperature=0.6, top_p=0.9)
    assert Sampling.from_defaults(released, temperature=0.0).temperature == 0
    assert Sampling.from_defaults(released, top_p=None, top_k=5) == Sampling(temperature=0.6, top_p=0.9, top_k=5)
    greedy = GenerationConfig(do_sample=False, temperature=0.7)
    assert Sampling.from_defaults(greedy).temperature == 0
    assert Sampling.from_defaults(greedy, top_p=0.5) == Sampling(temperature=0.7, top_p=0.5)
