"""Penalties, filters, draws and log-probabilities as plain torch operations, the same on every device."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mllama_cli.core.sampling import Sampling
from mllama_cli.kernels.ops import upload


class Settings(NamedTuple):
    """The settings of one row, or columns [n, 1] of several, in float64."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    log_min_p: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor

    @classmethod
    def columns(cls, table: Tensor) -> "Settings":
        return cls(*table.unsqueeze(-1).unbind(1))

    @classmethod
    def row(cls, sampling: Sampling, vocab_size: int) -> Tensor:
        # Sums that equal top-p but for rounding must count as equal on every device.
        top_p = sampling.top_p * (1 - 1e-9) if sampling.top_p < 1 else 2.0
        # exp(-700) is nearly the smallest float64: below it nothing is drawn, masked tokens included.
        log_min_p = max(math.log(sampling.min_p), -700.0) if sampling.min_p else -700.0
        top_k = min(sampling.top_k or vocab_size, vocab_size)
        filters = (sampling.temperature, top_k, top_p, log_min_p)
        penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        return torch.tensor([*filters, *penalties], dtype=torch.float64)


class Adjustments:
    """Logit bias and penalties as tables [rows, vocab_size], so that one captured step serves every request."""

    def __init__(self, rows: int, vocab_size: int, device: torch.device) -> None:
        self.bias = torch.zeros(rows, vocab_size, device=device)
        self.generated = torch.zeros(rows, vocab_size, device=device)
        """The number of times that a token was chosen."""
        self.seen = torch.zeros(rows, vocab_size, dtype=torch.bool, device=device)
        """Whether a token was chosen or is in the prompt."""

    def admit(self, index: int, sampling: Sampling, prompt_ids: Iterable[int]) -> None:
        vocab_size, device = self.seen.shape[1], self.seen.device
        for table in (self.bias, self.generated, self.seen):
            table[index].zero_()
        # The image token's id is vocab_size: it has no logit.
        if known := sorted({id_ for id_ in prompt_ids if id_ < vocab_size}):
            self.seen[index].index_fill_(0, upload(torch.tensor(known), device), True)
        if bias := {id_: value for id_, value in sampling.logit_bias.items() if 0 <= id_ < vocab_size}:
            ids = upload(torch.tensor(list(bias)), device)
            self.bias[index].index_copy_(0, ids, upload(torch.tensor(list(bias.values()), dtype=torch.float32), device))

    def apply(self, scores: Tensor, rows: Tensor, settings: Settings) -> Tensor:
        """Return adjusted scores. Only the repetition penalty counts the prompt, as in transformers and OpenAI."""
        scores = scores + self.bias[rows]
        repetition = settings.repetition.float()
        penalized = torch.where(scores < 0, scores * repetition, scores / repetition)
        scores = torch.where(self.seen[rows], penalized, scores)
        generated = self.generated[rows]
        scores = scores - generated * settings.frequency.float()
        return scores - (generated > 0) * settings.presence.float()

    def count(self, rows: Tensor, ids: Tensor) -> None:
        ids = ids.clamp(min=0)
        self.seen[rows, ids] = torch.ones_like(ids, dtype=torch.bool)
        self.generated[rows, ids] += 1


class Survivors(NamedTuple):
    """Ids by rank, their cumulative weights, and the number of ranks kept (-1 where scores are not finite)."""

    order: Tensor
    reached: Tensor
    kept: Tensor

    @classmethod
    def of(cls, scores: Tensor, settings: Settings) -> "Survivors":
        """Apply temperature, top-k, top-p and min-p to scores [n, vocab_size]; each filter cuts off the last ranks.

        Sums are in float64, so that devices that add in a different order still draw the same.
        """
        ordered, order = (scores / settings.temperature.float()).sort(dim=-1, descending=True, stable=True)
        offsets = ordered.double() - ordered[:, :1].double()
        weights = offsets.exp()
        reached = weights.cumsum(-1)
        # Tokens as likely as the last of the top k stay.
        kept = (ordered >= ordered.gather(1, settings.top_k.long() - 1)).sum(-1, keepdim=True)
        # A token stays while those before it have less than top-p of the mass that top-k left; so the first stays.
        mass = reached.gather(1, (kept - 1).clamp(min=0))
        kept = torch.minimum(kept, (reached - weights < settings.top_p * mass).sum(-1, keepdim=True))
        kept = torch.minimum(kept, (offsets >= settings.log_min_p).sum(-1, keepdim=True))
        # NaN and infinity sort first; both make the first weight NaN.
        return cls(order, reached, torch.where(ordered[:, :1].isfinite(), kept, -1))


def draw(left: Survivors, uniforms: Tensor) -> Tensor:
    """Return ids [n] by inverse CDF: the first rank whose cumulative weight exceeds its uniform [n, 1]; else -1."""
    last = (left.kept - 1).clamp(min=0)
    target = uniforms * left.reached.gather(1, last)
    rank = torch.minimum((left.reached <= target).sum(-1, keepdim=True), last)
    return torch.where(left.kept > 0, left.order.gather(1, rank), -1)[:, 0]


def log_probabilities(logits: Tensor, ids: Tensor, count: int) -> Tensor:
    """Return float64 [n, 1 + 2 * count]: those of ``ids`` and of the ``count`` likeliest tokens, then their ids."""
    scores = logits.float()
    total = scores.logsumexp(-1, keepdim=True)
    top, top_ids = scores.topk(min(count, scores.shape[-1]))
    chosen = scores.gather(1, ids.long().clamp(min=0)[:, None])
    return torch.cat([part.double() for part in (chosen - total, top - total, top_ids)], dim=1)
