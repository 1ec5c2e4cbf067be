"""Choose a model's device and dtype; ask the device for free memory, streams and time."""

import re
import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import psutil
import torch

from mllama_cli.core.errors import DeviceError, MemoryShortageError
from mllama_cli.core.settings import DTYPE_CHOICES

FLOAT32_LIMIT = 2 * 2**30
"""Bytes of float32 weights up to which a model runs in float32, the fastest format, on a CPU."""

HEADROOM = 512 * 2**20
"""Bytes kept free for activations and caches."""

_FAILED_ALLOCATION = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|CUDA (driver )?error: out of memory"
    r"|Triton Error \[CUDA\]: out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_(ALLOC_FAILED|INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED)"
)
"""Messages of a plain RuntimeError with which torch, a library or the driver reports a failed allocation."""


def choose_device(name: str = "auto") -> torch.device:
    """Return the device named auto, cpu, cuda or cuda:N. Raise DeviceError if this machine lacks it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(
            f"{name!r} is not a device", "Use auto, cpu, cuda, cuda:N or several such as cuda:0,cuda:1."
        ) from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("CUDA was asked for, but this machine has no usable CUDA device", "Use --device cpu.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"There is no {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    elif device.type != "cpu":
        raise DeviceError(
            f"Device {name!r} is not supported", "Use auto, cpu, cuda, cuda:N or several such as cuda:0,cuda:1."
        )
    return device


def choose_devices(name: str = "auto") -> list[torch.device]:
    """Return the devices of a comma-separated list, or of "cuda:all". Raise DeviceError if this machine lacks one."""
    if name == "cuda:all":
        choose_device("cuda")
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    devices = [choose_device(each) for each in name.split(",")]
    if len(devices) > 1:
        if len({device.type for device in devices}) > 1:
            raise DeviceError(f"{name} are devices of different kinds", "Name several GPUs, or cpu several times.")
        if devices[0].type == "cuda" and len({device.index or 0 for device in devices}) < len(devices):
            raise DeviceError(f"{name} names the same GPU twice", "Name each GPU once, or use cuda:all.")
    return devices


def host_buffer(device: torch.device) -> Callable[[int], memoryview]:
    """Return what makes buffers of some bytes, from which a GPU reads without a copy first: they are pinned."""
    pinned = device.type == "cuda"
    return lambda size: torch.empty(size, dtype=torch.uint8, pin_memory=pinned).numpy().data


def make_current(device: torch.device) -> None:
    """Make a GPU with an index the current one, which this thread's events and Triton's kernels use."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def choose_dtype(name: str, stored: torch.dtype, elements: int, device: torch.device) -> torch.dtype:
    """Return the dtype of weights: for "auto" the stored one, but float32 for small models on a CPU.

    GPUs without bfloat16 arithmetic get float16. Raise DeviceError for an unknown name.
    """
    if name != "auto":
        if name not in DTYPE_CHOICES:
            raise DeviceError(f"{name!r} is not a dtype", f"Use {', '.join(DTYPE_CHOICES)}.")
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.type == "cpu":
        return torch.float32 if elements * 4 <= FLOAT32_LIMIT else stored
    if stored == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return stored


def compute_dtype(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of activations and caches: on a CPU float32, the only fast one, else the weights'."""
    return torch.float32 if device.type == "cpu" else weights


def free_bytes(device: torch.device, *, cached: bool = True) -> int:
    """Return the bytes that this process may still allocate.

    On a GPU, ``cached`` includes memory that torch keeps after freeing, which capturing a graph cannot use.
    ``torch.cuda.set_per_process_memory_fraction`` is respected.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)(index)
    if share < 1:
        free = min(free, int(share * total) - reserved)
    if cached:
        free += reserved - torch.cuda.memory_allocated(device)
    return max(0, free)


def check_fits(needed: int, device: torch.device) -> None:
    """Raise MemoryShortageError unless ``needed`` bytes of weights and some headroom are free on the device."""
    free = free_bytes(device)
    if needed + HEADROOM <= free:
        return
    if device.type == "cuda":
        where, hint = str(device), "Close other programs that use the GPU, or use --device cpu."
    else:
        where = "memory"
        hint = "Close other programs, or use --dtype bfloat16, which needs half of float32."
    raise MemoryShortageError(f"The model needs {gib(needed + HEADROOM)} of {where}, but {gib(free)} are free", hint)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error is a failed allocation, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _FAILED_ALLOCATION.search(str(error)) is not None


def memory_shortage(work: str = "this") -> MemoryShortageError:
    """Return the error to raise when memory ran out during ``work``."""
    return MemoryShortageError(
        f"There is not enough memory for {work}",
        "Close other programs, ask with fewer images or less text, or use a smaller model.",
    )


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


@cache
def batch_stream(device: torch.device, work: Literal["step", "capture"]) -> torch.cuda.Stream:
    """Return the stream for a kind of work, the same for all batches: libraries keep up to 32 MiB for every stream.

    The many short kernels of steps, captured or not, take priority over the long ones of images.
    """
    return torch.cuda.Stream(device, priority=-1)


Mark = float | torch.cuda.Event


class Clock:
    """Time the work of one device without making the host wait at each mark."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """Return a mark that follows all work launched so far."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    @staticmethod
    def seconds(start: Mark, end: Mark) -> float:
        """Wait until the device has reached ``end``; return the seconds since ``start``."""
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
