"""What rank 0 tells the others: pickled calls in which caches and their tensors are named by numbers.

The processes are of one program and one user; the messages go over sockets that nobody else can open.
"""

import io
import itertools
import pickle
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mllama_cli.core.config import MllamaTextConfig
from mllama_cli.model.cache import KVCache
from mllama_cli.model.image_kv import Float8KV, ImageKV

Name = tuple[Any, ...]
"""A number that rank 0 gave to a cache or to the keys and values of images, and which part of it this is."""


class Names:
    """The numbers that rank 0 gives to what every rank has its own part of."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._caches: weakref.WeakKeyDictionary[KVCache, Name] = weakref.WeakKeyDictionary()
        self._tensors = WeakTensorKeyDictionary()
        self._gone: deque[Name] = deque()

    def new(self) -> int:
        return next(self._numbers)

    def add_layers(self, number: int, layers: ImageKV) -> None:
        """Name keys and values that every rank has just computed as ``number``."""
        for name, tensor in each_tensor(number, layers):
            self._tensors[tensor] = name
            weakref.finalize(tensor, self._gone.append, name).atexit = False

    @property
    def pending(self) -> int:
        """The number of caches and tensors that are gone, which the other ranks hear with the next call."""
        return len(self._gone)

    def write(self, call: Any) -> bytes:
        """Return a call as bytes, with the names of what is gone since the last one."""
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        buffer = io.BytesIO()
        _Writer(buffer, self).dump((gone, call))
        return buffer.getvalue()

    def of_cache(self, cache: KVCache) -> Name:
        name = self._caches.get(cache)
        if name is None:
            name = self._caches[cache] = ("cache", self.new())
            weakref.finalize(cache, self._gone.append, name).atexit = False
        return name

    def of_slots(self, slots: object) -> Name:
        """Name what every rank has of some slots, until rank 0's is gone."""
        name = ("slots", self.new())
        weakref.finalize(slots, self._gone.append, name).atexit = False
        return name

    def of_tensor(self, tensor: Tensor) -> Name | None:
        name: Name | None = self._tensors.get(tensor)
        return name


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: Names) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._names = names

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, KVCache):
            return "cache", self._names.of_cache(value), tuple(value.lengths), value.capacity
        if isinstance(value, Tensor):
            if (name := self._names.of_tensor(value)) is not None:
                return "layers", name
            host = value.detach().cpu().contiguous()
            return "tensor", host.dtype, tuple(host.shape), host.flatten().view(torch.uint8).numpy().tobytes()
        return None


class Twins:
    """A rank's own parts of what rank 0 names."""

    def __init__(self, config: MllamaTextConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self._parts: dict[Name, Any] = {}

    def add_layers(self, number: int, layers: ImageKV) -> None:
        self._parts |= dict(each_tensor(number, layers))

    def read(self, data: bytes) -> Any:
        """Return the call that rank 0 wrote, with this rank's own parts in it."""
        gone, call = _Reader(io.BytesIO(data), self).load()
        for name in gone:
            self._parts.pop(name, None)
        return call

    def cache(self, name: Name, lengths: tuple[int, ...], capacity: int) -> KVCache:
        """Return the twin of a cache of rank 0, with its lengths and at least its capacity."""
        cache = self._parts.get(name)
        if cache is None:
            cache = KVCache(self._config, len(lengths), dtype=self._dtype, device=self._device)
            self._parts[name] = cache
        assert isinstance(cache, KVCache)
        cache.lengths = list(lengths)
        cache.reserve(capacity)
        return cache

    def add(self, name: Name, part: object) -> None:
        self._parts[name] = part

    def part(self, name: Name) -> Any:
        return self._parts[name]

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], data: bytes) -> Tensor:
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return flat.view(dtype).view(shape).to(self._device)


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, twins: Twins) -> None:
        super().__init__(file)
        self._twins = twins

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == "cache":
            return self._twins.cache(*rest)
        return self._twins.part(*rest) if kind == "layers" else self._twins.tensor(*rest)


def each_tensor(number: int, layers: ImageKV) -> Iterable[tuple[Name, Tensor]]:
    """Yield the tensors that hold the keys and values of all layers, with their names."""
    if isinstance(layers, Float8KV):
        yield (number, "codes"), layers.codes
        yield (number, "scales"), layers.scales
        return
    for index, pair in enumerate(layers):
        for which, tensor in enumerate(pair):
            yield (number, index, which), tensor
