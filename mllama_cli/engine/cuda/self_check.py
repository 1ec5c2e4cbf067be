"""Compare a captured decode step with the network once, after kernels are first built on a machine.

A miscompiled kernel would otherwise show only in wrong answers.
"""

import torch

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.decode import GraphDecoder
from mllama_cli.engine.forward import DecodeInput, Network, forward, prefill
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import ImageSpan

MAX_RELATIVE_ERROR = 0.1
"""16-bit rounding causes about 0.01, a wrong kernel more than 1."""

CHECK_PROMPT_TOKENS = 100
CHECK_VISION_TOKENS = 200
"""More than one block of keys in either attention."""


@torch.inference_mode()
def relative_error(decoder: GraphDecoder, network: Network, *, with_images: bool) -> float:
    """Return the relative error of a captured step's logits after a random prompt."""
    config, state = network.language_model.config, decoder.graphs.state
    device, dtype = state.logits.device, state.logits.dtype
    cross: CrossKVCache | None = None
    spans: tuple[ImageSpan, ...] = ()
    generator = torch.Generator().manual_seed(0)
    if with_images:
        shape = (1, config.num_key_value_heads, CHECK_VISION_TOKENS, config.head_dim)

        def drawn() -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        cross = CrossKVCache([(drawn(), drawn()) for _ in config.cross_attention_layers], [[CHECK_VISION_TOKENS]])
        spans = (ImageSpan(0, None),)
    ids = torch.randint(config.vocab_size, (CHECK_PROMPT_TOKENS,), generator=generator).tolist()
    caches = [KVCache(config, dtype=dtype, device=device) for _ in range(2)]
    for cache in caches:
        *_, (_, logits) = prefill(network, ids, cache, cross, spans, device)
    tokens = decoder.tokens(DecodeInput(logits, caches[0], cross, spans, Sampling(), ids, 2))
    first, _ = tokens
    exact = forward(network, upload(torch.tensor([[first.id]]), device), caches[1], cross, [spans]).float()
    return float((state.logits.float() - exact).norm() / exact.norm())
