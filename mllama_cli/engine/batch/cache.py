"""The KV cache of a batch, with one preallocated row for each slot."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.model.cache import CrossKVCache, KVCache, LayerKV, grown
from mllama_cli.model.visibility import CrossView, Segment


class SlotCache:
    """Keys and values of a fixed number of slots, of which the first ``busy`` are in use.

    ``keys`` and ``values`` of each self-attention layer are [slots, kv_heads, capacity, head_dim]; ``cross_keys`` and
    ``cross_values`` of each cross-attention layer, [slots, kv_heads, cross capacity, head_dim], hold the vision tokens
    that decoded tokens see. ``lengths`` and ``cross_lengths``, int64 [slots] on the device, count the valid positions.
    """

    def __init__(self, config: MllamaTextConfig, slots: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.busy = 0
        shape = (slots, config.num_key_value_heads, 0, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in config.self_attention_layers]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in config.self_attention_layers]
        self.cross_keys = [torch.empty(shape, dtype=dtype, device=device) for _ in config.cross_attention_layers]
        self.cross_values = [torch.empty(shape, dtype=dtype, device=device) for _ in config.cross_attention_layers]
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self.cross_lengths = torch.zeros(slots, dtype=torch.long, device=device)
        # Copies on the host, so that no step waits for the device.
        self.host_lengths = [0] * slots
        self.host_cross_lengths = [0] * slots
        self._rows = torch.arange(slots, device=device)[:, None]
        self._seen: tuple[CrossKVCache | None, CrossView | None] | None = None

    @property
    def slots(self) -> int:
        return len(self.host_lengths)

    @property
    def max_len(self) -> int:
        """Filled positions of the longest busy slot."""
        return max(self.host_lengths[: self.busy], default=0)

    def reserve(self, length: int) -> None:
        """Make room for ``length`` positions in every slot."""
        capacity = self.keys[0].shape[2] if self.keys else length
        if length > capacity:
            _grow((self.keys, self.values), grown(length, capacity, self.config.max_position_embeddings))

    def rows(self, start: int, end: int) -> KVCache:
        """Return slots [start, end) as an empty cache for a prefill, in the same memory. Reserve first."""
        cache = KVCache(self.config, end - start, dtype=self.keys[0].dtype, device=self.lengths.device)
        cache.keys = [tensor[start:end] for tensor in self.keys]
        cache.values = [tensor[start:end] for tensor in self.values]
        return cache

    def put(self, slot: int, length: int, layers: list[LayerKV], start: int, end: int) -> None:
        """Give a slot ``length`` positions and vision tokens [start, end) of ``layers`` ([1, ...] each)."""
        whole = [(keys[:, :, start:end], values[:, :, start:end]) for keys, values in layers]
        self.put_uniform(slot, [length], whole, end - start)

    def put_uniform(self, first: int, lengths: Sequence[int], layers: Sequence[LayerKV], seen: int) -> None:
        """Give slots from ``first`` on these lengths, and each the same number of vision tokens.

        Layers are [slots, kv_heads, seen, head_dim] each. One copy serves all slots, as each costs host time.
        """
        end = first + len(lengths)
        if seen and seen > self.cross_keys[0].shape[2]:
            # No slack, since there are only few sizes of images.
            _grow((self.cross_keys, self.cross_values), seen)
        for index, (keys, values) in enumerate(layers if seen else ()):
            self.cross_keys[index][first:end, :, :seen] = keys
            self.cross_values[index][first:end, :, :seen] = values
        for slot, length in enumerate(lengths, first):
            self._set(slot, length, seen)
        self.busy = max(self.busy, end)

    def release(self, slot: int) -> None:
        """Free a slot, into which the last busy one moves. Old contents stay until they are overwritten."""
        last = self.busy - 1
        if slot != last:
            length, seen = self.host_lengths[last], self.host_cross_lengths[last]
            for tensor in (*self.keys, *self.values):
                tensor[slot, :, :length] = tensor[last, :, :length]
            for tensor in (*self.cross_keys, *self.cross_values) if seen else ():
                tensor[slot, :, :seen] = tensor[last, :, :seen]
            self._set(slot, length, seen)
        self._set(last, 0, 0)
        self.busy = last

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of ``source`` to ``target``."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def write(self, cache_index: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store a new position of each busy slot in the layer with that ``cache_index``; return its keys and values."""
        rows = self._rows[: self.busy]
        stored_k, stored_v = self.keys[cache_index], self.values[cache_index]
        stored_k[rows, :, positions] = keys.transpose(1, 2)
        stored_v[rows, :, positions] = values.transpose(1, 2)
        end = self.max_len + 1
        return stored_k[: self.busy, :, :end], stored_v[: self.busy, :, :end]

    def advance(self) -> None:
        """Count the position that a step has stored in each busy slot."""
        self.lengths[: self.busy] += 1
        for slot in range(self.busy):
            self.host_lengths[slot] += 1

    def seen(self) -> tuple[CrossKVCache | None, CrossView | None]:
        """Return the busy slots' vision tokens and their masks, rebuilt only after slots have changed."""
        if self._seen is None:
            counts = self.host_cross_lengths[: self.busy]
            width = max(counts, default=0)
            if not width:
                self._seen = (None, None)
            else:
                layers = [
                    (keys[: self.busy, :, :width], values[: self.busy, :, :width])
                    for keys, values in zip(self.cross_keys, self.cross_values, strict=True)
                ]
                cross = CrossKVCache(layers, [[count] for count in counts])
                self._seen = (cross, self._view(counts, width))
        return self._seen

    def _view(self, counts: list[int], width: int) -> CrossView:
        lengths = self.cross_lengths[: self.busy, None]
        mask = row_mask = None
        if min(counts) < width:
            # Softmax needs a key, so rows without vision tokens see the first one, and row_mask drops the result.
            mask = (torch.arange(width, device=lengths.device) < lengths.clamp(min=1))[:, None, None]
        if not min(counts):
            row_mask = (lengths > 0)[..., None]
        return CrossView((Segment(0, 1, 0, width),), mask, row_mask)

    def _set(self, slot: int, length: int, seen: int) -> None:
        self.lengths[slot] = length
        self.cross_lengths[slot] = seen
        self.host_lengths[slot] = length
        self.host_cross_lengths[slot] = seen
        self._seen = None


def _grow(groups: tuple[list[Tensor], ...], capacity: int) -> None:
    """Lengthen dimension 2 with zeros: a masked key has weight 0, and 0 times uninitialised memory can be NaN."""
    for tensors in groups:
        for index, old in enumerate(tensors):
            new = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
            new[:, :, : old.shape[2]] = old
            tensors[index] = new
