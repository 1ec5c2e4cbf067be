"""Compare captured work with the network once, after kernels are first built on a machine.

A miscompiled kernel would otherwise show only in wrong answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.decode import GraphDecoder
from mllama_cli.engine.cuda.pass_shapes import PassShape
from mllama_cli.engine.cuda.passes import CapturedPasses, Piece
from mllama_cli.engine.forward import DecodeInput, Network, forward
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import ImageSpan

MAX_RELATIVE_ERROR = 0.1
"""16-bit rounding causes about 0.01, a wrong kernel more than 1."""

CHECK_PROMPT_TOKENS = 100
CHECK_VISION_TOKENS = 200
"""More than one block of keys in either attention."""


@dataclass(frozen=True)
class _Talk:
    """Random ids, of which two caches hold the first, and random images that all of them see."""

    ids: list[int]
    caches: list[KVCache]
    cross: CrossKVCache | None
    spans: tuple[ImageSpan, ...]
    logits: Tensor
    """After the ids in the caches, [1, vocab_size]."""

    @classmethod
    def begun(cls, network: Network, dtype: torch.dtype, device: torch.device, more: int, *, with_images: bool) -> Self:
        """Return one with ``more`` ids than the caches hold."""
        config = network.language_model.config
        generator = torch.Generator().manual_seed(0)
        cross, spans = None, (ImageSpan(0, None),) * with_images
        if with_images:
            shape = (1, config.num_key_value_heads, CHECK_VISION_TOKENS, config.head_dim)

            def drawn() -> Tensor:
                return torch.randn(shape, generator=generator).to(device, dtype)

            cross = CrossKVCache([(drawn(), drawn()) for _ in config.cross_attention_layers], [[CHECK_VISION_TOKENS]])
        ids = torch.randint(config.vocab_size, (CHECK_PROMPT_TOKENS + more,), generator=generator).tolist()
        caches = [KVCache(config, dtype=dtype, device=device) for _ in range(2)]
        fed = upload(torch.tensor([ids[:CHECK_PROMPT_TOKENS]]), device)
        logits, _ = [forward(network, fed, cache, cross, [spans]) for cache in caches]
        return cls(ids, caches, cross, spans, logits)

    def exact(self, network: Network, ids: Sequence[int]) -> Tensor:
        """Return the network's logits after more ids."""
        fed = upload(torch.tensor([list(ids)]), self.logits.device)
        return forward(network, fed, self.caches[1], self.cross, [self.spans])


@torch.inference_mode()
def relative_error(decoder: GraphDecoder, network: Network, *, with_images: bool) -> float:
    """Return the relative error of a captured step's logits after a random prompt."""
    state = decoder.graphs.state
    talk = _Talk.begun(network, state.logits.dtype, state.logits.device, 0, with_images=with_images)
    tokens = decoder.tokens(DecodeInput(talk.logits, talk.caches[0], talk.cross, talk.spans, Sampling(), talk.ids, 2))
    first, _ = tokens
    return _apart(state.logits, talk.exact(network, [first.id]))


@torch.inference_mode()
def relative_error_of_pass(passes: CapturedPasses, network: Network, shape: PassShape) -> float:
    """Return the relative error of a captured pass's logits after a random prompt, with a few rows to spare."""
    count = shape.rows - 3
    talk = _Talk.begun(network, passes.dtype, passes.device, count, with_images=shape.with_images)
    ids = talk.ids[-count:]
    return _apart(passes.run([Piece(ids, talk.caches[0], talk.cross, talk.spans)]), talk.exact(network, ids))


def _apart(ours: Tensor, exact: Tensor) -> float:
    return float((ours.float() - exact.float()).norm() / exact.float().norm())
