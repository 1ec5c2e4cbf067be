"""The next token's distribution, held to transformers' logits processors."""

import pytest
import torch

from mllama_cli.core.config import GenerationConfig
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.sampling import Sampler, filtered_probabilities

LOGITS = torch.randn(300, generator=torch.Generator().manual_seed(0)) * 4


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.5, "min_p": 0.1},
        {"temperature": 2.0, "top_p": 1e-9},
        {"temperature": 1.0, "top_k": 100000},
    ],
    ids=str,
)
def test_filters_equal_transformers(settings: dict[str, float]) -> None:
    transformers = pytest.importorskip("transformers")
    scores = LOGITS[None] / settings["temperature"]
    if "top_k" in settings:
        scores = transformers.TopKLogitsWarper(min(int(settings["top_k"]), 300))(None, scores)
    if "top_p" in settings:
        scores = transformers.TopPLogitsWarper(settings["top_p"])(None, scores)
    if "min_p" in settings:
        scores = transformers.MinPLogitsWarper(settings["min_p"])(None, scores)
    expected = scores.softmax(-1)[0]
    ours = filtered_probabilities(LOGITS, Sampling(**settings))
    assert torch.equal(ours > 0, expected > 0)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_repetition_penalty_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    prompt = [3, 5, 5, 299]
    scores = transformers.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), LOGITS[None].clone())[0]
    image_token = 300
    sampler = Sampler(Sampling(repetition_penalty=1.7), 300, [*prompt, image_token], torch.device("cpu"))
    assert sampler(LOGITS) == int(scores.argmax())
    boosted = LOGITS.clone()
    boosted[5] = LOGITS.max() + 0.1
    assert sampler(boosted) != 5, "a seen token must lose against an unseen one that is nearly as likely"


def test_sampled_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampler = Sampler(Sampling(temperature=1.0, seed=1), 4, [], torch.device("cpu"))
    counts = torch.bincount(torch.tensor([sampler(logits) for _ in range(4000)]), minlength=4) / 4000
    torch.testing.assert_close(counts, logits.softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_an_error_not_a_token(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature), 300, [], torch.device("cpu"))
    with pytest.raises(MllamaError, match="NaN"):
        sampler(torch.full((300,), torch.nan))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2}, {"max_tokens": 0},
     {"repetition_penalty": 0}, {"stop": ("",)}],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**wrong)


def test_defaults_come_from_the_checkpoint_and_flags_override_them() -> None:
    released = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9)
    assert Sampling.from_defaults(released) == Sampling(temperature=0.6, top_p=0.9)
    assert Sampling.from_defaults(released, temperature=0.0).temperature == 0
    assert Sampling.from_defaults(released, top_p=None, top_k=5) == Sampling(temperature=0.6, top_p=0.9, top_k=5)
    greedy = GenerationConfig(do_sample=False, temperature=0.7)
    assert Sampling.from_defaults(greedy).temperature == 0
    assert Sampling.from_defaults(greedy, top_p=0.5) == Sampling(temperature=0.7, top_p=0.5)
