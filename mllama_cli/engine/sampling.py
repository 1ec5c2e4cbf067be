"""From logits to the next token."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mllama_cli.core.config import GenerationConfig
from mllama_cli.core.errors import MllamaError, UsageError

MAX_TOKENS = 2048
"""Length of an answer where nothing else is asked for: a model that never stops must not run all night."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop. ``temperature`` 0 is greedy, ``top_k`` 0 means all tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = MAX_TOKENS
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for ok, message in (
            (self.temperature >= 0, f"temperature must be 0 or more, not {self.temperature}"),
            (0 < self.top_p <= 1, f"top-p must be above 0 and at most 1, not {self.top_p}"),
            (self.top_k >= 0, f"top-k must be 0 (all tokens) or more, not {self.top_k}"),
            (0 <= self.min_p <= 1, f"min-p must be between 0 and 1, not {self.min_p}"),
            (self.repetition_penalty > 0, f"repetition-penalty must be above 0, not {self.repetition_penalty}"),
            (self.max_tokens >= 1, f"max-tokens must be 1 or more, not {self.max_tokens}"),
            (all(self.stop), "a stop string must not be empty"),
        ):
            if not ok:
                raise UsageError(message[0].upper() + message[1:])

    @classmethod
    def from_defaults(cls, defaults: GenerationConfig, **asked: Any) -> "Sampling":
        """The checkpoint's own defaults, overridden by what was ``asked`` (None means not asked).

        Asking for top-p, top-k or min-p alone turns sampling on, also where the checkpoint's default is greedy.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        samples = defaults.do_sample or any(name in given for name in ("top_p", "top_k", "min_p"))
        own = cls(
            temperature=defaults.temperature if samples else 0.0,
            top_p=defaults.top_p if defaults.do_sample else 1.0,
            top_k=defaults.top_k if defaults.do_sample else 0,
            min_p=defaults.min_p if defaults.do_sample else 0.0,
            repetition_penalty=defaults.repetition_penalty,
        )
        return replace(own, **given)


def not_finite() -> MllamaError:
    return MllamaError(
        "The model computed NaN or infinity, so no token can be chosen",
        "Use --dtype bfloat16 or float32; if that does not help, the weights are damaged.",
    )


class Sampler:
    """Chooses tokens for one conversation; remembers which ids it has seen for the repetition penalty.

    The order of the steps is transformers': repetition penalty, temperature, top-k, top-p, min-p.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: Iterable[int], device: torch.device) -> None:
        self.sampling = sampling
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
        self._seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            # The image token's id is vocab_size: it has no logit.
            ids = [id_ for id_ in prompt if id_ < vocab_size]
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(ids, dtype=torch.long, device=device)] = True

    @property
    def takes_the_best(self) -> bool:
        """Whether the next id is simply the one with the highest logit."""
        return self._generator is None and self._seen is None

    def __call__(self, logits: Tensor) -> int:
        """The next id from one row of logits [vocab_size]. MllamaError where the model computed NaN or infinity."""
        scores = logits.float()
        if self._seen is not None:
            penalty = self.sampling.repetition_penalty
            scores = torch.where(self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        if self._generator is None:
            best, index = scores.max(dim=-1)
            chosen = int(index)
            sound = bool(torch.isfinite(best))
        else:
            probabilities = filtered_probabilities(scores, self.sampling)
            sound = bool(torch.isfinite(probabilities).all())
            chosen = int(torch.multinomial(probabilities, 1, generator=self._generator)) if sound else 0
        if not sound:
            raise not_finite()
        if self._seen is not None:
            self._seen[chosen] = True
        return chosen


def choose(samplers: Sequence[Sampler], logits: Tensor) -> list[int | MllamaError]:
    """Each row's next id from logits [rows, vocab_size], or why there is none.

    The greedy rows are chosen together, so that a GPU is waited for once.
    """
    best: list[float] = []
    index: list[int] = []
    if any(sampler.takes_the_best for sampler in samplers):
        values, places = logits.max(dim=-1)
        best, index = values.tolist(), places.tolist()
    chosen: list[int | MllamaError] = []
    for row, sampler in enumerate(samplers):
        if sampler.takes_the_best:
            chosen.append(index[row] if math.isfinite(best[row]) else not_finite())
            continue
        try:
            chosen.append(sampler(logits[row]))
        except MllamaError as error:
            chosen.append(error)
    return chosen


def filtered_probabilities(scores: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities of each token after temperature, top-k, top-p and min-p: float32 [vocab_size]."""
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        smallest = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays while those before it have less than top_p together, so the first always stays.
        drop = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        scores = scores.scatter(-1, order, ordered.masked_fill(drop, -torch.inf))
    probabilities = scores.softmax(-1)
    if sampling.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < sampling.min_p * probabilities.max(), 0)
        probabilities = probabilities / probabilities.sum()
    return probabilities
