"""Prefill and decode as plain functions over a network and its caches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.text import MllamaForCausalLM
from mllama_cli.model.visibility import CrossView, ImageSpan

Network = MllamaForConditionalGeneration | MllamaForCausalLM

CHUNK = 1024
"""Prompt rows per forward pass: bounds activation memory, and a cancelled prompt stops within one of them."""


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
    counts = list(counts) if counts is not None else [length] * batch
    cache.advance(counts)
    last = hidden[torch.arange(batch, device=ids.device), torch.tensor(counts, device=ids.device) - 1]
    logits: Tensor = network.lm_head(last)
    return logits


def prefill(
    network: Network,
    ids: Sequence[int],
    cache: KVCache,
    cross: CrossKVCache | None,
    spans: Sequence[ImageSpan],
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """Feed one conversation's new ids in chunks; yields (ids fed so far, logits [1, vocab_size]) after each."""
    cache.reserve(cache.lengths[0] + len(ids))
    for start in range(0, len(ids), CHUNK):
        chunk = torch.tensor([ids[start : start + CHUNK]], device=device)
        logits = forward(network, chunk, cache, cross, [spans])
        yield start + chunk.shape[1], logits
