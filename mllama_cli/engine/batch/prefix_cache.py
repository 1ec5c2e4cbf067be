"""Self KV caches of answers that have ended, whose beginnings later prompts may share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mllama_cli.model.cache import KVCache

MIN_SHARED_PREFIX = 16
"""A shorter common beginning of two prompts is not worth copying."""


@dataclass(frozen=True, eq=False)
class CachedText:
    """Token ids, and the digests of their images, whose keys and values are at the beginning of ``cache``."""

    ids: tuple[int, ...]
    digests: tuple[str, ...]
    cache: KVCache


class PrefixCache:
    """Caches that no request uses any more, the least recently used first."""

    def __init__(self, most: int) -> None:
        self._most = most
        """The maximum number of caches: each is compared with every new prompt."""
        self._held: list[CachedText] = []
        self.nbytes = 0
        """Of all entries; counted as they come and go, since it is asked for at every step."""

    def __iter__(self) -> Iterator[CachedText]:
        return iter(self._held)

    def __contains__(self, text: object) -> bool:
        return text in self._held

    def keep(self, text: CachedText) -> None:
        """Hold an entry, which must not grow any more, and drop the oldest ones beyond the maximum."""
        if len(text.ids) >= MIN_SHARED_PREFIX:
            self._held.append(text)
            self.nbytes += text.cache.nbytes
            while len(self._held) > self._most:
                self.remove(self._held[0])

    def remove(self, text: CachedText) -> None:
        self._held.remove(text)
        self.nbytes -= text.cache.nbytes

    def touch(self, text: CachedText) -> None:
        """Count an entry as just used."""
        self._held.remove(text)
        self._held.append(text)

    def clear(self) -> None:
        self._held.clear()
        self.nbytes = 0


def shared_prefix(
    ids: Sequence[int], digests: Sequence[str], other_ids: Sequence[int], other_digests: Sequence[str], image_token: int
) -> int:
    """Return how many tokens two texts have in common from their beginning on; image tokens need equal digests.

    Keys and values depend only on what precedes them, so those of the common beginning are equal.

    >>> shared_prefix((1, 9, 2, 3), ("a",), (1, 9, 2, 4), ("a",), 9)
    3
    >>> shared_prefix((1, 9, 2, 3), ("a",), (1, 9, 2, 3), ("b",), 9)
    1
    """
    low, high = 0, min(len(ids), len(other_ids))
    if ids[:MIN_SHARED_PREFIX] != other_ids[:MIN_SHARED_PREFIX]:  # as is mostly the case
        high = min(high, MIN_SHARED_PREFIX)
    while low < high:  # slices compare faster than a loop over tokens
        middle = (low + high + 1) // 2
        if ids[low:middle] == other_ids[low:middle]:
            low = middle
        else:
            high = middle - 1
    images = [index for index, token in enumerate(ids[:low]) if token == image_token]
    for index, one, other in zip(images, digests, other_digests, strict=False):
        if one != other:
            return index
    return low
