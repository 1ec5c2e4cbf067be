"""From logits to the next token."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.sampling import Sampling


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
