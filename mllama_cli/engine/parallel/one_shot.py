"""Fast operations on small tensors: each GPU writes its words to all others' memory.

NCCL takes several times as long for what a decode step exchanges. Where GPUs cannot reach each other's memory, NCCL is
used; it is also the reference with which the first results are compared.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from mllama_cli.engine.parallel.peer_memory import PeerMemory
from mllama_cli.engine.parallel.plan import Share

MAX_ONE_SHOT_BYTES = 128 * 2**10
"""Of each rank's tensor; for larger ones NCCL moves fewer bytes."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What can be added up."""

CHECKED_SIZES, TOLERANCE = (8192, 130, MAX_ONE_SHOT_BYTES // 4), 0.03
"""Numbers in the first sums, which are compared with NCCL's; bfloat16 rounds by 0.004."""

Reduce, Gather = Callable[[Tensor], None], Callable[[Tensor], Tensor]


class OneShot:
    """Operations of all ranks on tensors of at most MAX_ONE_SHOT_BYTES. They can be captured."""

    def __init__(self, share: Share, device: torch.device, gather: Gather) -> None:
        """Share mailboxes with all ranks, which ``gather`` together. Raise RuntimeError where that cannot be had."""
        from mllama_cli.kernels.cuda.rank_exchange import BLOCK, Mailboxes  # needs Triton

        words = MAX_ONE_SHOT_BYTES // 4
        own = torch.zeros(2, share.count, words, dtype=torch.int64, device=device)
        torch.cuda.synchronize(device)  # before another rank, which knows of it now, writes
        self._memory = PeerMemory(own, share, gather)
        counts = torch.zeros(words // BLOCK, dtype=torch.int32, device=device)
        stop = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        self._mailboxes = Mailboxes(self._memory.addresses, counts, stop, share.rank, words)
        self.all_reduce, self.broadcast = self._mailboxes.add_up, self._mailboxes.broadcast
        self.all_gather = self._mailboxes.gather

    @staticmethod
    def takes(tensor: Tensor) -> bool:
        """Return whether a contiguous tensor can be broadcast or gathered so."""
        return 0 < tensor.nbytes <= MAX_ONE_SHOT_BYTES and tensor.nbytes % 4 == 0

    @classmethod
    def adds_up(cls, tensor: Tensor) -> bool:
        """Return whether a contiguous tensor can be added up so."""
        return tensor.dtype in DTYPES and cls.takes(tensor)

    def stop(self) -> None:
        """End the waiting for ranks that are lost, now and from now on. Call it from any thread."""
        self._mailboxes.stop[0] = 1

    def close(self) -> None:
        """Let go of the other ranks' memory."""
        self._memory.close()


def one_shot(share: Share, device: torch.device, reduce: Reduce, gather: Gather) -> OneShot | None:
    """Return the operations of a new group; None on all ranks where one cannot have them, or they are wrong.

    ``reduce`` and ``gather`` are NCCL's.
    """

    def all_can(this_one: bool) -> bool:
        failed = torch.tensor(float(not this_one), device=device)
        reduce(failed)
        return not failed.item()

    if not all_can(_can_share(share, device, reduce)):
        return None
    made: OneShot | None = None
    with suppress(RuntimeError, ImportError):
        made = OneShot(share, device, gather)
    if all_can(made is not None) and made is not None and all_can(_is_right(made, share, device, reduce, gather)):
        return made
    if made is not None:
        made.close()
    return None


def _can_share(share: Share, device: torch.device, reduce: Reduce) -> bool:
    """Return whether this GPU can reach all others' memory."""
    own = device.index or 0
    indices = torch.zeros(share.count, device=device)
    indices[share.rank] = own
    reduce(indices)
    others = {int(index) for index in indices.tolist()} - {own}
    return all(torch.cuda.can_device_access_peer(own, other) for other in others)


def _is_right(made: OneShot, share: Share, device: torch.device, reduce: Reduce, gather: Gather) -> bool:
    """Return whether results are NCCL's."""
    generator = torch.Generator().manual_seed(share.rank)
    right = True
    for dtype in DTYPES:
        for size in CHECKED_SIZES:
            numbers = torch.randn(size, generator=generator).to(device, dtype)
            everyone = gather(numbers)
            right = right and torch.equal(made.all_gather(numbers), everyone)
            expected, first = numbers.clone(), numbers.clone()
            reduce(expected)
            made.all_reduce(numbers)
            right = right and torch.allclose(numbers.float(), expected.float(), rtol=TOLERANCE, atol=TOLERANCE)
            made.broadcast(first)
            right = right and torch.equal(first, everyone[0])
    return right
