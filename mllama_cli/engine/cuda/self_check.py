"""Whether the decode kernels compute on this device what the network does: asked once, when they are first built.

A compiler that gets a kernel wrong would otherwise be seen in the answers alone.
"""

from collections.abc import Iterator

import torch

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.decode import GraphDecoder
from mllama_cli.engine.forward import DecodeInput, Network, forward, prefill
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import ImageSpan

MOST = 0.1
"""Relative distance of logits. 16-bit formats are a hundredth apart, a wrong kernel is by more than one."""

PROMPT = 100
TOKENS = 200
"""Length of the prompt, and vision tokens of what stands for a picture: more than one block of either attention."""


@torch.inference_mode()
def disagreement(decoder: GraphDecoder, network: Network, *, sees: bool) -> float:
    """Relative distance between the logits of a captured step and the network's, after the same prompt."""
    config, state = network.language_model.config, decoder.graphs.state
    device, dtype = state.logits.device, state.logits.dtype
    cross: CrossKVCache | None = None
    spans: tuple[ImageSpan, ...] = ()
    generator = torch.Generator().manual_seed(0)
    if sees:
        shape = (1, config.num_key_value_heads, TOKENS, config.head_dim)

        def drawn() -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        cross = CrossKVCache([(drawn(), drawn()) for _ in config.cross_attention_layers], [[TOKENS]])
        spans = (ImageSpan(0, None),)
    ids = torch.randint(config.vocab_size, (PROMPT,), generator=generator).tolist()
    caches = [KVCache(config, dtype=dtype, device=device) for _ in range(2)]
    for cache in caches:
        *_, (_, logits) = prefill(network, ids, cache, cross, spans, device)
    tokens: Iterator[int] = decoder.tokens(DecodeInput(logits, caches[0], cross, spans, Sampling(), ids, 2))
    first, _ = tokens
    exact = forward(network, upload(torch.tensor([[first]]), device), caches[1], cross, [spans]).float()
    return float((state.logits.float() - exact).norm() / exact.norm())
