"""Memory of GPUs that the ranks' processes share: each maps the others' tensors by CUDA's handles (IPC)."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mllama_cli.engine.parallel.plan import Share

LAZY_ENABLE_PEER_ACCESS = 1
"""The driver's flag to let this process's GPU reach the memory of the other one."""

HANDLE_BYTES, ADDRESS_BYTES = 64, 8


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


class PeerMemory:
    """A tensor of each rank, of one shape, that the GPUs of all ranks can read and write.

    ``addresses`` are those of all ranks' tensors in this process, in the order of the ranks.
    """

    def __init__(self, own: Tensor, share: Share, all_gather: Callable[[Tensor], Tensor]) -> None:
        """Exchange handles by ``all_gather``, which all ranks call, and map the others' tensors.

        Raise RuntimeError where that cannot be had, such as for tensors from torch's expandable segments.
        """
        self._own, self._mapped = own, list[int]()
        try:
            data, problem = _handle_of(own), None
        except RuntimeError as error:
            data, problem = bytes(HANDLE_BYTES + ADDRESS_BYTES), error
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(own.device)
        everyone = [bytes(one) for one in all_gather(sent).tolist()]
        if problem is not None:
            raise problem
        try:
            self.addresses = tuple(
                own.data_ptr() if rank == share.rank else self._map(data) for rank, data in enumerate(everyone)
            )
        except RuntimeError:
            self.close()
            raise

    def close(self) -> None:
        """Unmap the others' tensors, once this rank's GPU has done what it was given to do."""
        with suppress(RuntimeError), torch.cuda.device(self._own.device):
            torch.cuda.synchronize()
            while self._mapped:
                _call("cuIpcCloseMemHandle", ctypes.c_uint64(self._mapped.pop()))

    def _map(self, data: bytes) -> int:
        """Map a rank's allocation for this rank's GPU, and return the address of the tensor in it."""
        base, handle = ctypes.c_uint64(), _Handle.from_buffer_copy(data)
        _call("cuIpcOpenMemHandle_v2", ctypes.byref(base), handle, ctypes.c_uint(LAZY_ENABLE_PEER_ACCESS))
        self._mapped.append(base.value)
        return base.value + int.from_bytes(data[HANDLE_BYTES:], "little")


def _handle_of(tensor: Tensor) -> bytes:
    """Return the handle of the allocation that a tensor is in, and the tensor's offset there."""
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
    address = ctypes.c_uint64(tensor.data_ptr())
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
    _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
    return bytes(handle) + (tensor.data_ptr() - base.value).to_bytes(ADDRESS_BYTES, "little")


def _call(function: str, *arguments: Any) -> None:
    """Call the driver in this thread's context, which is that of torch's current device. Raise RuntimeError."""
    try:
        result = getattr(_driver(), function)(*arguments)
    except (OSError, AttributeError) as error:  # no driver, or an old one
        raise RuntimeError(f"{function} is not available: {error}") from error
    if result:
        raise RuntimeError(f"{function} failed: CUDA error {result}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
