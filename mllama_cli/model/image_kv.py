"""Keys and values of images, as they are computed or rounded to 8 bits for caches that hold many."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

LayerKV = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention layer, each [batch, kv_heads, tokens, head_dim]."""

MAX_FLOAT8 = 448.0
"""The largest number of float8_e4m3fn."""


class ImageKV(Protocol):
    """Keys and values of one image, or of several in a row, for each cross-attention layer."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LayerKV: ...

    def __iter__(self) -> Iterator[LayerKV]: ...


class Float8KV:
    """Keys and values as float8_e4m3fn, those of each head times a power of two; an ``ImageKV``.

    A layer is turned back into ``dtype``, exactly, when it is asked for.

    Attributes:
        codes: the bits of the floats, uint8 [layers, 2, batch, kv_heads, tokens, head_dim], keys before values.
        scales: the powers of two, float32 [layers, 2, batch, kv_heads].
    """

    def __init__(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        self.codes, self.scales, self.dtype = codes, scales, dtype

    @classmethod
    def of(cls, layers: Sequence[LayerKV]) -> "Float8KV":
        """Round keys and values to the nearest."""
        example = layers[0][0]
        largest = torch.stack(
            [torch.stack([torch.linalg.vector_norm(t, torch.inf, dim=(2, 3)) for t in pair]) for pair in layers]
        )
        scales = _power_of_two_from(largest.float() / MAX_FLOAT8)
        scales = torch.where(largest.isfinite(), scales, torch.nan)  # float8 has no infinity, and errors must show
        inverse = (1 / scales)[..., None, None]
        codes = torch.empty(len(layers), 2, *example.shape, dtype=torch.uint8, device=example.device)
        floats = codes.view(torch.float8_e4m3fn)
        for index, pair in enumerate(layers):
            for which, tensor in enumerate(pair):
                floats[index, which].copy_(tensor * inverse[index, which])
        return cls(codes, scales, example.dtype)

    @classmethod
    def joined(cls, batch: Sequence[Sequence["Float8KV"]]) -> "Float8KV":
        """Join the images of each conversation, padded with zeros at the end; at least one has an image.

        A head's floats take the largest scale of its images, which is exact for all but the smallest.
        """
        example = next(images for images in batch if images)[0]
        layers, _, _, heads, _, dim = example.codes.shape
        width = max(sum(image.tokens for image in images) for images in batch)
        codes = example.codes.new_zeros((layers, 2, len(batch), heads, width, dim))
        scales = example.scales.new_ones((layers, 2, len(batch), heads))
        floats = codes.view(torch.float8_e4m3fn)
        for row, images in enumerate(batch):
            end = 0
            for image in images:
                scales[:, :, row] = torch.stack([each.scales[:, :, 0] for each in images]).amax(0)
                for index in range(layers):
                    share = image.scales[index, :, 0] / scales[index, :, row]
                    numbers = image.codes[index, :, 0].view(torch.float8_e4m3fn).float() * share[..., None, None]
                    floats[index, :, row, :, end : end + image.tokens] = numbers
                end += image.tokens
        return cls(codes, scales, example.dtype)

    @property
    def tokens(self) -> int:
        return self.codes.shape[4]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return self.codes.shape[0]

    def __getitem__(self, index: int) -> LayerKV:
        numbers = self.codes[index].view(torch.float8_e4m3fn).to(self.dtype)
        keys, values = numbers.mul_(self.scales[index, ..., None, None])
        return keys, values

    def __iter__(self) -> Iterator[LayerKV]:
        return (self[index] for index in range(len(self)))


def token_count(image: ImageKV) -> int:
    """Return the number of vision tokens."""
    return image.tokens if isinstance(image, Float8KV) else image[0][0].shape[2]


def _power_of_two_from(x: Tensor) -> Tensor:
    """Return the smallest powers of two that are not below float32 x, within the range of normal numbers."""
    mantissa, exponent = torch.frexp(x.clamp(min=torch.finfo(torch.float32).tiny))
    exponent = torch.where(mantissa > 0.5, exponent, exponent - 1).clamp(-126, 127)
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)
