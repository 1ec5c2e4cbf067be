"""Prefill and decode as plain functions over a network and its caches."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.sampling import ChosenToken, Method, Sampler, noted
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.layers import result_of
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaForCausalLM
from mllama_cli.model.visibility import CrossView, ImageSpan
from mllama_cli.processing.grammar import Constraint

Network = MllamaForConditionalGeneration | MllamaForCausalLM

PREFILL_CHUNK = 1024
"""Prompt tokens for each forward pass, which bounds activation memory and the time until a prompt can be cancelled.

A GPU with enough memory takes more (engine/weights/memory.py).
"""

MAX_PREFILL_BATCH = 8
"""Conversations whose prompts are read together, which bounds the memory of their encoded images."""


def forward(
    network: Network,
    ids: Tensor,
    cache: KVCache,
    cross: CrossKVCache | None,
    spans: Sequence[Sequence[ImageSpan]],
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Run token ids [B, L] that follow what ``cache`` holds; return logits [B, vocab_size] of the last real positions.

    Of each conversation's L ids the first ``counts`` are real (default: all); the rest is padding.
    """
    return result_of(forward_steps(network, ids, cache, cross, spans, counts))


@torch.inference_mode()
def forward_steps(
    network: Network,
    ids: Tensor,
    cache: KVCache,
    cross: CrossKVCache | None,
    spans: Sequence[Sequence[ImageSpan]],
    counts: Sequence[int] | None = None,
) -> Generator[None, None, Tensor]:
    """Do as ``forward`` does, and yield after each layer. Other work must leave ``cache`` alone meanwhile."""
    batch, length = ids.shape
    view = None
    if cross is not None:
        view = CrossView.build(spans, cross.image_tokens, cache.lengths, length, ids.device)
    hidden = yield from network.language_model.steps(ids, cache, cross, view)
    cache.advance(counts if counts is not None else [length] * batch)
    if counts is None:
        last = hidden[:, -1]
    else:
        last = hidden[torch.arange(batch, device=ids.device), upload(torch.tensor(counts), ids.device) - 1]
    logits: Tensor = network.lm_head(last)
    return logits


@torch.inference_mode()
def log_probability(
    network: Network,
    ids: Sequence[int],
    ends: Sequence[int],
    logits: Tensor,
    cache: KVCache,
    cross: CrossKVCache | None,
    spans: Sequence[ImageSpan],
) -> float:
    """Return the log-probability of ``ids`` and then any of ``ends``, after a prompt with these ``logits``.

    The ids stay in the cache.
    """
    rows = logits
    if ids:
        cache.reserve(cache.lengths[0] + len(ids))
        fed = upload(torch.tensor([list(ids)]), logits.device)
        view = None
        if cross is not None:
            view = CrossView.build([spans], cross.image_tokens, cache.lengths, len(ids), logits.device)
        hidden = result_of(network.language_model.steps(fed, cache, cross, view))
        cache.advance([len(ids)])
        rows = torch.cat([logits, network.lm_head(hidden[0])])
    scores = rows.double().log_softmax(-1)
    end = scores[-1, upload(torch.tensor(list(ends)), logits.device)].logsumexp(0)
    chosen = scores[:-1].gather(
        1, upload(torch.tensor([[id_] for id_ in ids], dtype=torch.long).view(-1, 1), logits.device)
    )
    return float(chosen.sum() + end)


@dataclass(frozen=True)
class DecodeInput:
    """A prefilled conversation to answer.

    Attributes:
        logits: of the prompt's last position, [1, vocab_size].
        cache: filled by the prompt; decoding appends to it.
        cross: the encoded images of ``spans``.
        prompt: all ids, for the penalties.
        budget: the maximum number of tokens to yield.
        constraint: holds the answer to ``sampling.grammar``.
    """

    logits: Tensor
    cache: KVCache
    cross: CrossKVCache | None
    spans: Sequence[ImageSpan]
    sampling: Sampling
    prompt: Sequence[int]
    budget: int
    constraint: Constraint | None = None


def decode(network: Network, start: DecodeInput) -> Generator[ChosenToken]:
    """Yield the answer's tokens; by the time one is yielded, all before it are in the cache.

    Tokens that a grammar leaves no choice about are fed together.
    """
    logits, left = start.logits, start.budget
    sampler = Sampler(1, logits.shape[-1], logits.device)
    sampler.admit(0, start.sampling, start.prompt, start.constraint)
    while left:
        (token,) = sampler.choose(logits)
        if isinstance(token, MllamaError):
            raise token
        yield token
        left -= 1
        forced = forced_tokens(start, left)
        left -= len(forced)
        if left or forced:
            ids = upload(torch.tensor([[token.id, *forced]]), logits.device)
            logits = forward(network, ids, start.cache, start.cross, [start.spans])
        sampler.skip(0, len(forced))
        for id_ in forced:
            taken = noted(ChosenToken(id_), start.constraint)
            if isinstance(taken, MllamaError):
                raise taken
            yield taken


def forced_tokens(start: DecodeInput, left: int) -> list[int]:
    """Return the next tokens, up to ``left``, that need no choice, as the grammar leaves none."""
    if start.constraint is None or not may_force(start.sampling):
        return []
    return start.constraint.forced[:left]


def may_force(sampling: Sampling) -> bool:
    """Return whether a grammar's tokens may need no choice.

    They do where log-probabilities are asked for, or penalties count the tokens that are chosen.
    """
    return sampling.grammar is not None and sampling.logprobs is None and not Method.of(sampling).adjusts


class Decoder:
    """Read and answer one conversation at a time, with the network's own operations."""

    fallback_reason = ""
    """Why decoding on a GPU fell back to plain torch; empty if it did not, and on a CPU."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def prepare(self, *, with_images: bool, sampling: Sampling) -> Iterator[Event]:
        """Prepare what ``tokens`` needs; yield a Notice if kernels have to be built."""
        return iter(())

    def prepare_feed(self, count: int, *, with_images: bool) -> Iterator[Event]:
        """Prepare to ``feed`` so many ids, of which some see an image or none; yield a Notice if that takes long."""
        return iter(())

    def feed(
        self, ids: Sequence[int], cache: KVCache, cross: CrossKVCache | None, spans: Sequence[ImageSpan]
    ) -> Tensor:
        """Run one conversation's ids that follow what ``cache`` holds; return logits [1, vocab_size] of the last."""
        cache.reserve(cache.lengths[0] + len(ids))
        device = self._network.language_model.norm.weight.device
        return forward(self._network, upload(torch.tensor([list(ids)]), device), cache, cross, [spans])

    def prefill(
        self,
        ids: Sequence[int],
        cache: KVCache,
        cross: CrossKVCache | None,
        spans: Sequence[ImageSpan],
        chunk: int = PREFILL_CHUNK,
    ) -> Iterator[tuple[int, Tensor]]:
        """``feed`` in chunks; after each yield (ids fed so far, logits [1, vocab_size])."""
        cache.reserve(cache.lengths[0] + len(ids))
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            yield start + len(part), self.feed(part, cache, cross, spans)

    def tokens(self, start: DecodeInput) -> Generator[ChosenToken]:
        """Yield the answer's tokens; by the time one is yielded, all before it are in the cache."""
        return decode(self._network, start)

    def prepare_batch(self) -> Iterator[Event]:
        """Yield a Notice if the first batch on this machine has to build kernels."""
        return iter(())

    def batch_stepped(self) -> None:
        """Record that a batch has made a step, so that the next process does not announce its kernels."""
