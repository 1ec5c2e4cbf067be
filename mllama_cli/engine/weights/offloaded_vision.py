"""Keep the vision tower's layers in host memory, and upload each while the one before it computes.

A layer's weights are in one block, so that an upload is one copy, into one of two buffers on the device used
alternately. While a layer runs, its parameters are views of its buffer, otherwise of its block. Results are bitwise
equal to those with weights on the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mllama_cli.core.errors import MemoryShortageError
from mllama_cli.engine.device import gib
from mllama_cli.model.vision import MllamaVisionModel
from mllama_cli.model.vision_layers import MllamaVisionAttention, MllamaVisionEncoderLayer

ALIGNMENT = 256
"""Bytes to which a matrix is aligned, as kernels and libraries may expect."""

_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


@dataclass(frozen=True)
class _Slice:
    """A parameter's part of its layer's block."""

    name: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def of(self, block: Tensor) -> Tensor:
        return block[self.start : self.start + self.nbytes].view(self.dtype).view(self.shape)


class _Layout:
    """The slices of one layer's parameters; query, key and value matrices are adjacent and, if ``joined``, one view."""

    def __init__(self, layer: nn.Module, joined: bool) -> None:
        parameters = dict(layer.named_parameters())
        parts = [parameters.get(name) for name in _QKV]
        weights = [part for part in parts if part is not None]
        uniform = len(weights) == 3 and len({(part.shape[1], part.dtype) for part in weights}) == 1
        names = [*_QKV, *(name for name in parameters if name not in _QKV)] if uniform else list(parameters)
        self.slices: list[_Slice] = []
        end = 0
        for name in names:
            if not (uniform and name in _QKV):
                end = -(-end // ALIGNMENT) * ALIGNMENT
            parameter = parameters[name]
            self.slices.append(_Slice(name, end, tuple(parameter.shape), parameter.dtype))
            end += parameter.nbytes
        self.size = -(-end // ALIGNMENT) * ALIGNMENT
        self._joined: _Slice | None = None
        if uniform and joined:
            rows = sum(part.shape[0] for part in weights)
            self._joined = _Slice("", 0, (rows, weights[0].shape[1]), weights[0].dtype)

    def views(self, layer: MllamaVisionEncoderLayer, block: Tensor) -> "_Views":
        """Return a layer's parameters as views of a block."""
        parameters = []
        for part in self.slices:
            owner, _, attribute = part.name.rpartition(".")
            view = nn.Parameter(part.of(block), requires_grad=False)
            parameters.append((layer.get_submodule(owner)._parameters, attribute, view))
        return _Views(layer.self_attn, parameters, self._joined.of(block) if self._joined else None)


@dataclass(frozen=True)
class _Views:
    """A layer's parameters as views of a block, and its query, key and value matrices as one view."""

    attention: MllamaVisionAttention
    parameters: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]]
    """For each its module's dict, its key there, and the view."""
    qkv_weight: Tensor | None

    def enter(self) -> None:
        """Make these the layer's parameters."""
        for holder, name, parameter in self.parameters:
            holder[name] = parameter
        self.attention.qkv_weight = self.qkv_weight


class OffloadedVision:
    """Offload the layers of a loaded vision tower, wherever its parameters are.

    ``pack`` moves them; then the tower is called as before. On a CPU the same copies are made, synchronously.
    """

    def __init__(self, tower: MllamaVisionModel, device: torch.device) -> None:
        self._layers = layers_of(tower)
        self._device = device
        self._blocks: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._on_host: list[_Views] = []
        self._on_device: list[_Views] = []
        """For each layer its parameters in buffer ``index % 2``."""
        self._held: list[int | None] = [None, None]
        self._stream: torch.cuda.Stream | None = None
        self._ready: list[torch.cuda.Event] = []

    def pack(self) -> Iterator[int]:
        """Copy the layers into their blocks; yield the bytes of each. Raise MemoryShortageError."""
        joined = self._device.type == "cuda" or all(layer.self_attn.qkv_weight is not None for layer in self._layers)
        layouts = [_Layout(layer, joined) for layer in self._layers]
        largest = max((layout.size for layout in layouts), default=0)
        self._blocks = host_blocks(len(layouts), largest, self._device)
        with torch.inference_mode(False):  # so that they can be written outside that mode too
            self._buffers = [torch.empty(largest, dtype=torch.uint8, device=self._device) for _ in range(2)]
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)
            self._ready = [torch.cuda.Event() for _ in range(2)]
            for buffer in self._buffers:  # which may be freed during an upload
                buffer.record_stream(self._stream)
        for index, (layer, layout) in enumerate(zip(self._layers, layouts, strict=True)):
            views = layout.views(layer, self._blocks[index])
            with torch.no_grad():
                for holder, name, parameter in views.parameters:
                    loaded = holder[name]
                    assert loaded is not None
                    parameter.copy_(loaded)
            views.enter()
            self._on_host.append(views)
            self._on_device.append(layout.views(layer, self._buffers[index % 2]))
            yield sum(parameter.nbytes for _, _, parameter in views.parameters)
        for index, layer in enumerate(self._layers):
            layer.register_forward_pre_hook(partial(self._before, index))
            layer.register_forward_hook(partial(self._after, index), always_call=True)

    def _before(self, index: int, layer: nn.Module, arguments: object) -> None:
        self._upload(index)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._ready[index % 2])
        self._on_device[index].enter()
        if index + 1 < len(self._layers):
            self._upload(index + 1)

    def _after(self, index: int, layer: nn.Module, arguments: object, result: object) -> None:
        self._on_host[index].enter()
        if index + 1 == len(self._layers):
            self._upload(0)  # for the next image

    def _upload(self, index: int) -> None:
        """Start copying a layer into its buffer, unless it is there, after all work launched so far.

        That work includes the layer that uses the buffer now, but not the layer about to run.
        """
        buffer = index % 2
        if self._held[buffer] == index:
            return
        self._held[buffer] = None  # in case this is interrupted
        source, target = self._blocks[index], self._buffers[buffer]
        if self._stream is None:
            target.copy_(source)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                target.copy_(source, non_blocking=True)
                self._ready[buffer].record(self._stream)
        self._held[buffer] = index


def layers_of(tower: MllamaVisionModel) -> Sequence[MllamaVisionEncoderLayer]:
    """Return the tower's layers in the order in which they run."""
    layers = [*tower.transformer.layers, *tower.global_transformer.layers]
    return [layer for layer in layers if isinstance(layer, MllamaVisionEncoderLayer)]


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return uninitialised host memory, page-locked if ``device`` is a GPU, so that it can read it asynchronously.

    Raise MemoryShortageError if the system does not provide that much page-locked memory.
    """
    try:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    except RuntimeError as error:
        size = torch.Size(shape).numel() * dtype.itemsize
        raise MemoryShortageError(
            f"The system gives no {gib(size)} of page-locked memory for weights that do not fit on the GPU",
            "Close other programs, raise the limit (ulimit -l), or use a smaller model.",
        ) from error


def to_host(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a copy of the tensor in ``host_tensor`` memory."""
    copy = host_tensor(tuple(tensor.shape), dtype, device)
    copy.copy_(tensor)
    return copy


def host_blocks(count: int, size: int, device: torch.device) -> list[Tensor]:
    """Return ``count`` blocks of ``size`` bytes, uint8, in ``host_tensor`` memory.

    torch rounds page-locked allocations up to a power of two, so blocks share them in the way that wastes least.
    """

    def allocated(n: int) -> int:
        return count // n * _next_power_of_two(n * size) + _next_power_of_two(count % n * size)

    per_allocation = min(range(1, count + 1), key=allocated, default=1)
    blocks: list[Tensor] = []
    while len(blocks) < count:
        n = min(per_allocation, count - len(blocks))
        blocks += host_tensor((n * size,), torch.uint8, device).view(n, size).unbind()
    return blocks


def _next_power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length() if size else 0
