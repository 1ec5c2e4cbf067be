"""Prefill and decode as plain functions over a network and its caches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.core.errors import MllamaError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.sampling import ChosenToken, Sampler
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaForCausalLM
from mllama_cli.model.visibility import CrossView, ImageSpan

Network = MllamaForConditionalGeneration | MllamaForCausalLM

CHUNK = 1024
"""Prompt rows per forward pass: bounds activation memory, and a cancelled prompt stops within one of them.

A GPU takes more, where it has the memory (engine/weights/memory.py).
"""


@torch.inference_mode()
def forward(
    network: Network,
    ids: Tensor,
    cache: KVCache,
    cross: CrossKVCache | None,
    spans: Sequence[Sequence[ImageSpan]],
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Run token ids [B, L] that follow what ``cache`` holds -> logits [B, vocab_size] of each row's last real position.

    ``counts`` says how many of the L rows of each conversation are real (default all); the rest is padding at the end.
    """
    batch, length = ids.shape
    view = None
    if cross is not None:
        view = CrossView.build(spans, cross.image_tokens, cache.lengths, length, ids.device)
    hidden = network.language_model(ids, cache, cross, view)
    cache.advance(counts if counts is not None else [length] * batch)
    if counts is None:
        last = hidden[:, -1]
    else:
        last = hidden[torch.arange(batch, device=ids.device), upload(torch.tensor(counts), ids.device) - 1]
    logits: Tensor = network.lm_head(last)
    return logits


def prefill(
    network: Network,
    ids: Sequence[int],
    cache: KVCache,
    cross: CrossKVCache | None,
    spans: Sequence[ImageSpan],
    device: torch.device,
    rows: int = CHUNK,
) -> Iterator[tuple[int, Tensor]]:
    """Feed one conversation's new ids, ``rows`` at a time; yields (ids fed so far, logits [1, vocab_size]) each."""
    cache.reserve(cache.lengths[0] + len(ids))
    for start in range(0, len(ids), rows):
        chunk = upload(torch.tensor([ids[start : start + rows]]), device)
        logits = forward(network, chunk, cache, cross, [spans])
        yield start + chunk.shape[1], logits


@dataclass(frozen=True)
class DecodeInput:
    """A prefilled conversation to answer.

    Attributes:
        logits: of the prompt's last position, [1, vocab_size].
        cache: what the prompt has filled; decoding appends to it.
        cross: the encoded images, laid out as ``spans`` says.
        prompt: all of its ids, which penalties count.
        budget: the most tokens to yield.
    """

    logits: Tensor
    cache: KVCache
    cross: CrossKVCache | None
    spans: Sequence[ImageSpan]
    sampling: Sampling
    prompt: Sequence[int]
    budget: int


def decode(network: Network, start: DecodeInput) -> Iterator[ChosenToken]:
    """Yield the answer's tokens. When the next one is asked for, all before it are in the cache."""
    logits = start.logits
    sampler = Sampler(1, logits.shape[-1], logits.device)
    sampler.admit(0, start.sampling, start.prompt)
    for number in range(start.budget):
        (token,) = sampler.choose(logits)
        if isinstance(token, MllamaError):
            raise token
        yield token
        if number + 1 < start.budget:
            ids = upload(torch.tensor([[token.id]]), logits.device)
            logits = forward(network, ids, start.cache, start.cross, [start.spans])
