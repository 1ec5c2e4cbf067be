"""Step several conversations together, each on its own caches."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.sampling import PendingTokens, Sampler
from mllama_cli.kernels.ops import upload
from mllama_cli.model.cache import KVCache
from mllama_cli.model.image_kv import ImageKV
from mllama_cli.model.layers import grouped_attention
from mllama_cli.model.visibility import CrossView
from mllama_cli.processing.grammar import Constraint


@dataclass
class SlotCaches:
    """The caches of one conversation.

    Attributes:
        cache: the self KV cache, of a batch of one.
        seen: all vision tokens that decoded tokens see, [1, kv_heads, tokens, head_dim] for each cross-attention layer;
            conversations about the same image share it.
    """

    cache: KVCache
    seen: ImageKV | None = None

    @property
    def length(self) -> int:
        return self.cache.lengths[0]


class Slots:
    """Up to ``count`` conversations stepped together. Busy slots are always the first ones.

    The tokens that were chosen stay on the device and are fed by the next step. Except for rounding, what a slot
    computes depends on its own conversation alone.
    """

    def __init__(self, model: LoadedModel, count: int) -> None:
        self.model, self.count = model, count
        self.sampler = Sampler(count, model.config.text_config.vocab_size, model.device)
        self.caches: list[SlotCaches] = []
        """Those of the busy slots."""
        self._tokens = torch.zeros(count, dtype=torch.long, device=model.device)
        self._cross: tuple[_SlotsCross | None, CrossView | None] | None = None

    @property
    def busy(self) -> int:
        return len(self.caches)

    @property
    def free(self) -> int:
        return self.count - self.busy

    @torch.inference_mode()
    def admit(
        self,
        caches: SlotCaches,
        sampling: Sampling,
        prompt: Iterable[int],
        constraint: Constraint | None = None,
    ) -> None:
        """Put a prefilled conversation into the next free slot; ``choose`` its first token next."""
        self.sampler.admit(self.busy, sampling, prompt, constraint)
        self.caches.append(caches)
        self._cross = None

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        """Free a slot, into which the last busy one moves."""
        last = self.busy - 1
        self.sampler.release(slot, last)
        self._tokens[slot] = self._tokens[last]
        self.caches[slot] = self.caches[last]
        self.caches.pop()
        self._cross = None

    @torch.inference_mode()
    def choose(self, logits: Tensor, first: int = 0) -> PendingTokens:
        """Choose the next tokens of the slots from ``first`` on by their logits [n, vocab_size]."""
        pending = self.sampler.launch(logits, first)
        self._tokens[first : first + logits.shape[0]].copy_(pending.ids)
        return pending

    @torch.inference_mode()
    def step(self, before_choice: Callable[[], None] | None = None) -> PendingTokens:
        """Feed each busy slot's newest token and choose the next. If memory runs out, nothing has changed.

        ``before_choice`` is called when the tokens are being fed. It waits for all earlier tokens if slots have
        constraints, which choose by them.
        """
        logits = self.logits()
        if before_choice is not None:
            before_choice()
        pending = self.choose(logits)
        self._advance()
        return pending

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Return logits [busy, vocab_size] after each busy slot's newest token, valid until the next step."""
        for slot, caches in enumerate(self.caches):
            if caches.length >= caches.cache.capacity:
                caches.cache.reserve(caches.length + 1)
                self.moved(slot)
        return self._forward()

    def _advance(self) -> None:
        for caches in self.caches:
            caches.cache.advance([1])

    def prepare(self) -> bool:
        """Do a part of what later steps would have to do first; return whether there was any."""
        return False

    def moved(self, slot: int) -> None:
        """Take note that a slot's self KV cache has other tensors than before."""

    def _forward(self) -> Tensor:
        model = self.model.network.language_model
        positions = upload(torch.tensor([[caches.length] for caches in self.caches]), self.model.device)
        ids = self._tokens[: self.busy, None].clamp(min=0)  # -1 where logits were not finite: the answer has failed
        cache = _SlotsSelf([caches.cache for caches in self.caches])
        hidden = model.run(ids, model.context(positions, cache, None), *self._seen())
        logits: Tensor = self.model.network.lm_head(hidden[:, 0])
        return logits

    def _seen(self) -> tuple["_SlotsCross | None", CrossView | None]:
        """Return the busy slots' vision tokens and which slots see any, rebuilt when slots have changed."""
        if self._cross is None:
            seen = [caches.seen for caches in self.caches]
            if not any(seen):
                self._cross = (None, None)
            else:
                mask = None
                if not all(seen):
                    mask = upload(torch.tensor([bool(layers) for layers in seen])[:, None, None], self.model.device)
                self._cross = (_SlotsCross(seen), CrossView(row_mask=mask))
        return self._cross


class _SlotsSelf:
    """The self KV caches of several conversations, each of which attends to its own."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self._caches = caches

    def attend(
        self, cache_index: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        rows = zip(self._caches, q.split(1), k.split(1), v.split(1), positions.split(1), strict=True)
        parts = [cache.attend(cache_index, one_q, one_k, one_v, at, mask) for cache, one_q, one_k, one_v, at in rows]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class _SlotsCross:
    """The vision tokens of several conversations, read once for all slots that share them."""

    def __init__(self, seen: Sequence[ImageKV | None]) -> None:
        sharing: dict[int, tuple[ImageKV, list[int]]] = {}
        for slot, layers in enumerate(seen):
            if layers:
                sharing.setdefault(id(layers), (layers, []))[1].append(slot)
        self._groups = list(sharing.values())

    def attend(self, cache_index: int, q: Tensor, view: CrossView) -> Tensor:
        out = q.new_zeros(q.shape[0], 1, q.shape[1] * q.shape[3])
        for layers, slots in self._groups:
            # The slots' rows become the rows of one conversation.
            rows = q[slots].transpose(0, 2)
            out[slots] = grouped_attention(rows, *layers[cache_index]).transpose(0, 1)
        return out
