"""A fast sum of small tensors: each GPU writes its numbers to all others', through torch's symmetric memory.

NCCL takes several times as long for what a decode step adds up. Where GPUs cannot reach each other's memory, or torch
does not provide this, NCCL is used; it is also the reference with which the first sums are compared.
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

WORDS = MAX_ONE_SHOT_BYTES // 4
"""Of 32 bits, the capacity of a mailbox."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the kernel adds up."""

CHECKED_SIZES, TOLERANCE = (8192, 130, WORDS), 0.03
"""Numbers in the first sums, which are compared with NCCL's; bfloat16 rounds by 0.004."""


def forbid_multicast() -> None:
    """Keep torch and NCCL from NVLink multicast, which can take down a host that several users share."""
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"


class OneShot:
    """Sums over the ranks of a group, at most MAX_ONE_SHOT_BYTES at a time. They can be captured."""

    def __init__(self, name: str, group: object, share: Share, device: torch.device) -> None:
        """Share mailboxes with all ranks of a ``group`` that is registered as ``name``.

        Raise RuntimeError or ImportError where that cannot be had.
        """
        from mllama_cli.kernels.cuda.rank_sum import BLOCK, rank_sum

        memory: Any = import_module("torch.distributed._symmetric_memory")
        self._group, self._rank, self._sum = group, share.rank, rank_sum  # torch does not keep the group
        self._own = memory.empty(2 * share.count * WORDS, dtype=torch.int64, device=device)
        self._own.zero_()
        self._shared = memory.rendezvous(self._own, name)
        self._mailboxes = tuple(self._shared.buffer_ptrs)
        self._counts = torch.zeros(WORDS // BLOCK, dtype=torch.int32, device=device)
        self._stop = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        torch.cuda.synchronize(device)  # mailboxes must be empty before another rank writes; the next sum is NCCL's

    @staticmethod
    def takes(tensor: Tensor) -> bool:
        """Return whether a contiguous tensor can be added up so."""
        return tensor.dtype in DTYPES and 0 < tensor.nbytes <= MAX_ONE_SHOT_BYTES and tensor.nbytes % 4 == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum of all ranks'."""
        self._sum(tensor, self._mailboxes, self._counts, self._stop, self._rank, WORDS)

    def stop(self) -> None:
        """End the waiting for ranks that are lost, now and from now on. Call it from any thread."""
        self._stop[0] = 1


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
        made = OneShot(name, register_group(backend, store, share, device, name), share, device)
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
    right = True
    for dtype in DTYPES:
        for size in CHECKED_SIZES:
            numbers = torch.randn(size, generator=generator).to(device, dtype)
            expected = numbers.clone()
            reduce(expected)
            made.all_reduce(numbers)
            right = right and torch.allclose(numbers.float(), expected.float(), rtol=TOLERANCE, atol=TOLERANCE)
    return right
