"""Where and in which number format a model runs, and whether it fits there."""

import psutil
import torch

from mllama_cli.core.errors import DeviceError, MemoryShortageError

SMALL = 2 * 2**30
"""On a CPU, models whose float32 weights are at most this many bytes run in float32: the fastest format there."""

HEADROOM = 512 * 2**20
"""Bytes kept free for activations and caches."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """auto, cpu, cuda or cuda:N -> the device. DeviceError where this machine lacks it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is not a device", "Use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("CUDA was asked for, but this machine has no usable CUDA device", "Use --device cpu.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"There is no {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    elif device.type != "cpu":
        raise DeviceError(f"Device {name!r} is not supported", "Use auto, cpu, cuda or cuda:N.")
    return device


def make_current(device: torch.device) -> None:
    """Let this thread's events and Triton's kernels go to that GPU, not to the first one."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def choose_dtype(name: str, stored: torch.dtype, elements: int, device: torch.device) -> torch.dtype:
    """The format that weights are kept in. "auto" keeps the checkpoint's, but float32 for small models on a CPU.

    GPUs without bfloat16 arithmetic get float16.
    """
    if name != "auto":
        if name not in DTYPES:
            raise DeviceError(f"{name!r} is not a dtype", f"Use auto, {', '.join(DTYPES)}.")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32 if elements * 4 <= SMALL else stored
    if stored == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return stored


def compute_dtype(weights: torch.dtype, device: torch.device) -> torch.dtype:
    """The format of activations and caches: the weights', but float32 on a CPU, which is fast in nothing else."""
    return torch.float32 if device.type == "cpu" else weights


def free_bytes(device: torch.device, *, cached: bool = True) -> int:
    """Bytes that this process may still allocate there.

    On a GPU, what torch keeps of freed memory counts as free, but not without ``cached``: capturing a graph cannot take
    it. A limit that ``torch.cuda.set_per_process_memory_fraction`` has set is heeded.
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
    """Whether an allocation failed, on a GPU or on the CPU (torch raises a plain RuntimeError there)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    marks = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def memory_shortage(work: str = "this") -> MemoryShortageError:
    """What to say where memory ran out in the middle of ``work``."""
    return MemoryShortageError(
        f"There is not enough memory for {work}",
        "Close other programs, ask with fewer pictures or less text, or use a smaller model.",
    )


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
