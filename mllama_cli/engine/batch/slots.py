"""Prefill prompts into free slots, and step all busy slots together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mllama_cli.engine.batch.cache import SlotCache
from mllama_cli.engine.forward import PREFILL_CHUNK, forward, prefill
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.sampling import Sampler
from mllama_cli.kernels.ops import upload
from mllama_cli.kernels.sdpa import has_decode_attention
from mllama_cli.model.cache import CrossKVCache, LayerKV
from mllama_cli.model.visibility import image_spans, segments

if TYPE_CHECKING:
    from mllama_cli.engine.batch.slot_graphs import SlotGraphs

MIN_SHARED_PREFIX = 16
"""A shorter common beginning of two prompts is not worth copying."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its encoded images (keys and values for each layer) in the order of image tokens."""

    ids: tuple[int, ...]
    digests: tuple[str, ...] = ()
    images: tuple[list[LayerKV], ...] = ()


class Slots:
    """The slots of up to ``count`` conversations answered at once. Busy slots are always the first ones.

    Except for rounding, a slot's answer depends only on its own prompt.
    """

    def __init__(self, model: LoadedModel, count: int) -> None:
        self.model = model
        self.count = count
        self.sampler = Sampler(count, model.config.text_config.vocab_size, model.device)
        self.cache = SlotCache(model.config.text_config, count, dtype=model.dtype, device=model.device)
        self._held: list[tuple[tuple[int, ...], tuple[str, ...]]] = [((), ())] * count
        """For each slot, busy or not, the ids and image digests whose keys and values it still holds."""
        self._graphs: SlotGraphs | None = None

    @property
    def busy(self) -> int:
        return self.cache.busy

    @property
    def free(self) -> int:
        return self.count - self.cache.busy

    @torch.inference_mode()
    def fill(self, prompts: Sequence[Prompt]) -> Tensor:
        """Prefill prompts into the next free slots; return logits [prompts, vocab_size] of their last positions.

        Several are padded to the longest (see ``fits_together``); one alone is prefilled in chunks.
        """
        first, model = self.cache.busy, self.model
        spans = [image_spans(prompt.ids, model.config.image_token_index) for prompt in prompts]
        cross = CrossKVCache.from_images([prompt.images for prompt in prompts])
        kept = [self._share_prefix(prompt, slot) for slot, prompt in enumerate(prompts, first)]
        new = [prompt.ids[start:] for prompt, start in zip(prompts, kept, strict=True)]
        longest = max(map(len, new))
        self.cache.reserve(max(kept) + longest)
        rows = self.cache.rows(first, first + len(prompts))
        rows.lengths = kept
        if len(prompts) == 1:
            chunks = prefill(model.network, new[0], rows, cross, spans[0], model.device, model.prefill_chunk)
            *_, (_, logits) = chunks
        else:
            pad = model.config.text_config.pad_token_id
            padded = upload(torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in new]), model.device)
            logits = forward(model.network, padded, rows, cross, spans, [len(ids) for ids in new])
        counts = [[image[0][0].shape[2] for image in prompt.images] for prompt in prompts]
        if cross is not None and len(counts[0]) == 1 and all(row == counts[0] for row in counts):
            # As in captioning, every slot sees the whole of one image.
            self.cache.put_uniform(first, [len(prompt.ids) for prompt in prompts], cross.layers, counts[0][0])
            self._held[first : first + len(prompts)] = [(prompt.ids, prompt.digests) for prompt in prompts]
        else:
            for slot, prompt in enumerate(prompts, first):
                self._put(slot, prompt)
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each busy slot's newest token; return logits [busy, vocab_size], valid until the next step."""
        model, cache = self.model.network.language_model, self.cache
        max_len = cache.max_len + 1
        cache.reserve(max_len)
        keys = cache.keys[0]
        if has_decode_attention(keys.device, keys.dtype, keys.shape[-1]):
            captured = self._captured(tokens)
            cache.advance()
            return captured
        positions = cache.lengths[: cache.busy, None]
        mask = (torch.arange(max_len, device=positions.device) <= positions)[:, None, None]
        ids = upload(torch.tensor(tokens), positions.device)[:, None]
        hidden = model.run(ids, model.context(positions, cache, mask), *cache.seen())
        cache.advance()
        logits: Tensor = self.model.network.lm_head(hidden[:, 0])
        return logits

    def _captured(self, tokens: Sequence[int]) -> Tensor:
        """Step by replaying a captured graph, which may compute some free slots too."""
        from mllama_cli.engine.batch.slot_graphs import SlotGraphs, StepShape

        if self._graphs is None:
            self._graphs = SlotGraphs(self.model.network, self.cache)
        shape = StepShape.of(self.cache)
        self._held[self.busy : shape.rows] = [((), ())] * (shape.rows - self.busy)
        return self._graphs.step(tokens, shape)

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        """Free a slot, into which the last busy one moves."""
        last = self.cache.busy - 1
        self.cache.release(slot)
        self.sampler.release(slot, last)
        self._held[slot] = self._held[last]

    def _share_prefix(self, prompt: Prompt, target: int) -> int:
        """Copy the longest prefix of the prompt that any slot holds to ``target``; return its length.

        This is exact, since keys and values depend only on what precedes them. At least one token remains to be fed.
        """
        image_token = self.model.config.image_token_index
        best, source = 0, target
        for slot, (ids, digests) in enumerate(self._held):
            length = images = 0
            for old, new in zip(ids, prompt.ids[:-1], strict=False):
                if old != new:
                    break
                if new == image_token:
                    if digests[images] != prompt.digests[images]:
                        break
                    images += 1
                length += 1
            if length > best:
                best, source = length, slot
        if best < MIN_SHARED_PREFIX:
            best = 0
        elif source != target:
            self.cache.copy_prefix(source, target, best)
        self._held[target] = (prompt.ids[:best], prompt.digests)
        return best

    def _put(self, slot: int, prompt: Prompt) -> None:
        """Give the slot the vision tokens that the prompt's last token sees, as will all decoded tokens."""
        last = len(prompt.ids) - 1
        counts = [image[0][0].shape[2] for image in prompt.images]
        seen = segments(image_spans(prompt.ids, self.model.config.image_token_index), counts, last, last + 1)
        if not seen:
            self.cache.put(slot, len(prompt.ids), [], 0, 0)
        else:
            start, end = seen[0].key_start, seen[0].key_end
            joined = CrossKVCache.from_images([prompt.images])
            assert joined is not None
            self.cache.put(slot, len(prompt.ids), joined.layers, start, end)
        self._held[slot] = (prompt.ids, prompt.digests)


def fits_together(lengths: Sequence[int]) -> bool:
    """Return whether prompts of these lengths, padded to the longest, fit into one prefill chunk."""
    return len(lengths) * max(lengths) <= PREFILL_CHUNK
