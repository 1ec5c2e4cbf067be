"""KV caches. A session or batch owns them; the network only reads and fills them."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.model.image_kv import Float8KV, ImageKV, token_count
from mllama_cli.model.layers import causal_attention, grouped_attention
from mllama_cli.model.visibility import CrossView

GROWTH = 256
"""The self KV cache grows in steps of at least this many positions."""


class SelfCache(Protocol):
    """What a self-attention layer needs of a self KV cache."""

    def attend(
        self, cache_index: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Store new rows' k and v [B, kv_heads, L, head_dim] at ``positions`` [B, L]; attend from q to all of them.

        q is [B, heads, L, head_dim]; return [B, L, heads * head_dim].
        """
        ...


class CrossCache(Protocol):
    """What a cross-attention layer needs of the vision tokens' keys and values."""

    def attend(self, cache_index: int, q: Tensor, view: CrossView) -> Tensor:
        """Attend from q [B, heads, L, head_dim] to the vision tokens that ``view`` shows each row.

        Rows before the view's first segment are not in q. Return [B, L, heads * head_dim].
        """
        ...


def attend_new_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend causally, or by ``mask``, from rows q to keys and values that end with the same rows."""
    if q.shape[2] == 1 or mask is not None:
        return grouped_attention(q, k, v, mask)
    return causal_attention(q, k, v)


def grown(length: int, capacity: int, limit: int) -> int:
    """Return a capacity for ``length`` positions: half more than before, to copy rarely, but at most ``limit``."""
    capacity = max(length, capacity + max(GROWTH, capacity // 2))
    return max(length, min(-(-capacity // GROWTH) * GROWTH, limit))


class KVCache:
    """Keys and values of the self-attention layers, preallocated and grown in steps.

    ``keys[index]`` and ``values[index]`` are [batch, kv_heads, capacity, head_dim], of the layer with that
    ``cache_index``. The first ``lengths[b]`` positions of conversation b are filled; later ones are never attended to.
    """

    def __init__(
        self,
        config: MllamaTextConfig,
        batch: int = 1,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.limit = config.max_position_embeddings
        shape = (batch, config.num_key_value_heads, 0, config.head_dim)
        count = len(config.self_attention_layers)
        empty = torch.empty(shape, dtype=dtype, device=device)
        self.keys, self.values = [empty] * count, [empty] * count
        self.lengths = [0] * batch
        self.block: Tensor | None = None
        """All keys and values, [2, layers, batch, kv_heads, capacity, head_dim], if they are one allocation."""
        self._consistent = True
        """False after growing failed midway: layers have different capacities, but none lost anything."""

    @property
    def capacity(self) -> int:
        if not self._consistent:
            return 0
        return self.keys[0].shape[2] if self.keys else self.limit

    @property
    def uniform(self) -> bool:
        """Return whether every conversation of the batch is equally long, so that positions are one slice."""
        return min(self.lengths) == max(self.lengths)

    def reserve(self, length: int) -> None:
        """Make room for ``length`` positions. Running out of memory may clear the cache: see ``lengths``."""
        if length <= self.capacity:
            return
        try:
            self._resize(grown(length, self.capacity, self.limit))
            return
        except torch.OutOfMemoryError:
            pass  # leave the handler first: the traceback keeps tensors alive
        self._resize_through_host(max(length, min(-(-length // GROWTH) * GROWTH, self.limit)))

    def _resize(self, capacity: int) -> None:
        filled = max(self.lengths)
        if not filled and self.keys:  # one allocation: many small ones would take longer than a short prompt
            old = self.keys[0]
            self.block = old.new_zeros((2, len(self.keys), *old.shape[:2], capacity, old.shape[3]))
            self.keys, self.values = list(self.block[0].unbind()), list(self.block[1].unbind())
            self._consistent = True
            return
        self._consistent, self.block = False, None
        for tensors in (self.keys, self.values):
            for index, old in enumerate(tensors):
                # Zeros, since a masked key has weight 0, and 0 times NaN from uninitialised memory would be NaN.
                new = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
                new[:, :, :filled] = old[:, :, :filled]
                tensors[index] = new
        self._consistent = True

    def _resize_through_host(self, capacity: int) -> None:
        """Resize when old and new do not fit into memory together."""
        lengths, filled = self.lengths, max(self.lengths)
        held = [[t[:, :, :filled].cpu() for t in tensors] for tensors in (self.keys, self.values)]
        self.lengths, self.block = [0] * len(lengths), None
        self.keys, self.values = [[t[:, :, :0].clone() for t in tensors] for tensors in (self.keys, self.values)]
        self._resize(capacity)
        for tensors, kept in zip((self.keys, self.values), held, strict=True):
            for new, old in zip(tensors, kept, strict=True):
                new[:, :, :filled] = old
        self.lengths = lengths

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def attend(
        self, cache_index: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        all_k, all_v = self.write(cache_index, k, v, positions)
        if all_k.shape[2] > k.shape[2]:  # else use new rows: cuDNN would plan again for each cache's strides
            k, v = all_k, all_v
        return attend_new_rows(q, k, v, mask)

    def write(self, cache_index: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [B, kv_heads, L, head_dim] at ``positions`` [B, L]; return all up to the longest."""
        start, count = max(self.lengths), keys.shape[2]
        stored_k, stored_v = self.keys[cache_index], self.values[cache_index]
        if self.uniform:
            stored_k[:, :, start : start + count] = keys
            stored_v[:, :, start : start + count] = values
        else:
            rows = torch.arange(len(self.lengths), device=keys.device)[:, None]
            stored_k[rows, :, positions] = keys.transpose(1, 2)
            stored_v[rows, :, positions] = values.transpose(1, 2)
        return stored_k[:, :, : start + count], stored_v[:, :, : start + count]

    def copy_from(self, source: "KVCache", row: int, length: int, *, to_row: int = 0) -> None:
        """Copy the first ``length`` positions of a row of another cache to ``to_row``. Reserve them first."""
        if self.block is not None and source.block is not None:  # one launch instead of one for each tensor
            self.block[:, :, to_row, :, :length] = source.block[:, :, row, :, :length]
        else:
            for mine, theirs in ((self.keys, source.keys), (self.values, source.values)):
                for target, tensor in zip(mine, theirs, strict=True):
                    target[to_row, :, :length] = tensor[row, :, :length]
        self.lengths[to_row] = length

    def advance(self, counts: Sequence[int]) -> None:
        """Add the positions that a forward pass has filled."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def truncate(self, length: int) -> None:
        """Forget everything from position ``length`` on."""
        self.lengths = [min(old, length) for old in self.lengths]


class CrossKVCache:
    """Keys and values of the cross-attention layers for each conversation's vision tokens, image after image.

    ``layers[index]`` holds [batch, kv_heads, tokens, head_dim]; shorter conversations of a batch are padded at the end.
    ``image_tokens[b]`` has the token count of each image of conversation b, unused tiles excluded.
    """

    def __init__(self, layers: ImageKV, image_tokens: Sequence[Sequence[int]]) -> None:
        self.layers = layers
        self.image_tokens = tuple(tuple(counts) for counts in image_tokens)

    def attend(self, cache_index: int, q: Tensor, view: CrossView) -> Tensor:
        keys, values = self.layers[cache_index]
        if view.mask is not None:
            return grouped_attention(q, keys, values, view.mask)
        first = view.segments[0].row_start
        return torch.cat(
            [
                grouped_attention(
                    q[:, :, part.row_start - first : part.row_end - first],
                    keys[:, :, part.key_start : part.key_end],
                    values[:, :, part.key_start : part.key_end],
                )
                for part in view.segments
            ],
            dim=1,
        )

    @classmethod
    def from_images(cls, batch: Sequence[Sequence[ImageKV]]) -> "CrossKVCache | None":
        """Join single images' keys and values (each of [1, kv_heads, tokens, head_dim]), all rounded or none.

        Return None if no conversation of the batch has an image.
        """
        if not any(batch):
            return None
        counts = [[token_count(image) for image in images] for images in batch]
        width = max(map(sum, counts))
        if counts == [[width]]:
            return cls(batch[0][0], counts)
        rounded = [[image for image in images if isinstance(image, Float8KV)] for images in batch]
        if any(rounded):
            return cls(Float8KV.joined(rounded), counts)
        if all(row == [width] for row in counts):
            pairs = zip(*(images[0] for images in batch), strict=True)
            return cls(
                [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in pairs], counts
            )
        example = next(images for images in batch if images)[0]

        def padded(index: int, which: int) -> Tensor:
            _, heads, _, dim = example[index][which].shape
            joined = example[index][which].new_zeros((len(batch), heads, width, dim))
            for row, images in enumerate(batch):
                end = 0
                for image in images:
                    tensor = image[index][which]
                    joined[row, :, end : end + tensor.shape[2]] = tensor[0]
                    end += tensor.shape[2]
            return joined

        return cls([(padded(index, 0), padded(index, 1)) for index in range(len(example))], counts)
