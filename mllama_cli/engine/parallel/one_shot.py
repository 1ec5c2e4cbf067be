"""A fast sum of small tensors: each GPU reads those of all others, by torch's symmetric memory.

NCCL takes three times as long for what a decode step adds up. Where GPUs cannot read each other's memory, or torch does
not provide this, NCCL is used; it is also the reference with which the first sums are compared.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from mllama_cli.engine.parallel.plan import Share

MAX_ONE_SHOT_BYTES = 128 * 2**10
"""Of a tensor; for larger ones NCCL moves fewer bytes."""

ALIGNMENT = 16
"""Bytes of which a tensor's size must be a multiple."""

DTYPES = (torch.bfloat16, torch.float32)
"""What torch's kernel adds up."""

CHECKED_ELEMENTS, TOLERANCE = 8192, 0.02
"""Of the first sums, which are compared with NCCL's; bfloat16 rounds by 0.004."""


def forbid_multicast() -> None:
    """Keep torch and NCCL from NVLink multicast, which can take down a host that several users share."""
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"


class OneShot:
    """Sums over the ranks of a group, at most MAX_ONE_SHOT_BYTES at a time. It can be captured."""

    def __init__(self, name: str, group: object, device: torch.device) -> None:
        """Share a buffer with all ranks of a ``group`` that is registered as ``name``. Raise RuntimeError."""
        memory: Any = import_module("torch.distributed._symmetric_memory")
        self._name, self._group = name, group  # torch does not keep it
        self._buffer = memory.empty(MAX_ONE_SHOT_BYTES, dtype=torch.uint8, device=device)
        memory.rendezvous(self._buffer, name)

    @staticmethod
    def takes(tensor: Tensor) -> bool:
        """Return whether a contiguous tensor can be added up so."""
        return tensor.dtype in DTYPES and 0 < tensor.nbytes <= MAX_ONE_SHOT_BYTES and tensor.nbytes % ALIGNMENT == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum of all ranks'."""
        flat = tensor.view(-1)
        shared = self._buffer[: tensor.nbytes].view(tensor.dtype)
        shared.copy_(flat)
        torch.ops.symm_mem.one_shot_all_reduce_out(shared, "sum", self._name, flat)


def one_shot(
    backend: Any, store: Any, share: Share, device: torch.device, name: str, reduce: Callable[[Tensor], None]
) -> OneShot | None:
    """Return the sums of a new group, called ``name`` on all ranks; None where they cannot be had, or are wrong.

    ``backend`` is the group's NCCL, and ``reduce`` adds up by it.
    """

    def all_can(this_one: bool) -> bool:
        failed = torch.tensor(float(not this_one), device=device)
        reduce(failed)
        return not failed.item()

    if not all_can(_can_share(share, device, reduce)):
        return None
    made: OneShot | None = None
    with suppress(RuntimeError, ImportError, AttributeError, TypeError):  # another version of torch, or an old driver
        made = OneShot(name, register_group(backend, store, share, device, name), device)
    if not all_can(made is not None) or made is None:
        return None
    return made if all_can(_is_right(made, share, device, reduce)) else None


def _can_share(share: Share, device: torch.device, reduce: Callable[[Tensor], None]) -> bool:
    """Return whether this GPU can read all others' memory, and torch leaves multicast alone."""
    indices = torch.zeros(share.count, device=device)
    indices[share.rank] = device.index or 0
    reduce(indices)
    own = device.index or 0
    others = {int(index) for index in indices.tolist()} - {own}
    try:
        from torch._C._autograd import DeviceType
        from torch._C._distributed_c10d import _SymmetricMemory

        if _SymmetricMemory.has_multicast_support(DeviceType.CUDA, own):
            return False
    except (ImportError, AttributeError, RuntimeError):
        return False
    return all(torch.cuda.can_device_access_peer(own, other) for other in others)


def register_group(backend: Any, store: Any, share: Share, device: torch.device, name: str) -> object:
    """Let torch's operations find a group by its name, as long as what is returned is kept."""
    c10d: Any = torch._C._distributed_c10d
    group = c10d.ProcessGroup(store, share.rank, share.count)
    kind = c10d.ProcessGroup.BackendType
    group._register_backend(device, kind.NCCL if device.type == "cuda" else kind.GLOO, backend)
    group._set_group_name(name)
    c10d._register_process_group(name, group)
    # Some versions of torch look the ranks up here, not in the group.
    c10d._SymmetricMemory.set_group_info(name, share.rank, share.count, store)
    return group


def _is_right(made: OneShot, share: Share, device: torch.device, reduce: Callable[[Tensor], None]) -> bool:
    generator = torch.Generator().manual_seed(share.rank)
    for dtype in DTYPES:
        numbers = torch.randn(CHECKED_ELEMENTS, generator=generator).to(device, dtype)
        expected = numbers.clone()
        reduce(expected)
        made.all_reduce(numbers)
        if not torch.allclose(numbers.float(), expected.float(), rtol=TOLERANCE, atol=TOLERANCE):
            return False
    return True
