"""Fast operations on small tensors: each GPU writes its words to all others' memory.

NCCL takes several times as long for what a decode step exchanges. Where GPUs cannot reach each other's memory, NCCL is
used; it is also the reference with which the first results are compared.
"""

import math
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from mllama_cli.engine.parallel.peer_memory import PeerMemory
from mllama_cli.engine.parallel.plan import Share

MAX_SENT_BYTES = 2 * 2**20
"""Of a tensor that a rank sends to all others; for more NCCL, which moves fewer, is nearly as fast on two GPUs."""

BYTES_MULTIPLE = 1024
"""What one program of the kernel exchanges."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What can be added up."""

CHECKED_SIZES, TOLERANCE = (8192, 130), 0.03
"""Numbers in the first sums, with as many as can be, which are compared with NCCL's; bfloat16 rounds by 0.004."""

Reduce = Callable[[Tensor], None]
Gather = Callable[[Tensor], Tensor]


class OneShot:
    """Operations of all ranks on tensors of at most ``most`` bytes, and on larger ones in pieces while capturing.

    A captured operation of NCCL would keep it from ending as long as there is the graph.
    """

    def __init__(self, share: Share, device: torch.device, gather: Gather) -> None:
        """Share mailboxes with all ranks, which ``gather`` together. Raise RuntimeError where that cannot be had."""
        from mllama_cli.kernels.cuda.rank_exchange import BLOCK, Mailboxes  # needs Triton

        self.most = max_one_shot_bytes(share.count)
        words = self.most // 4
        own = torch.zeros(2, share.count, words, dtype=torch.int64, device=device)
        torch.cuda.synchronize(device)  # before another rank, which knows of it now, writes
        self._memory = PeerMemory(own, share, gather)
        counts = torch.zeros(words // BLOCK, dtype=torch.int32, device=device)
        stop = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        addresses = torch.tensor(self._memory.addresses, device=device)
        self._mailboxes = Mailboxes(addresses, counts, stop, share.rank, words)
        self.all_reduce, self.broadcast = self._mailboxes.add_up, self._mailboxes.broadcast
        self.all_gather = self._mailboxes.gather

    def takes(self, tensor: Tensor) -> bool:
        """Return whether a contiguous tensor can be broadcast or gathered so."""
        return fits(tensor, math.inf if torch.cuda.is_current_stream_capturing() else self.most)

    def adds_up(self, tensor: Tensor) -> bool:
        """Return whether a contiguous tensor can be added up so."""
        return tensor.dtype in DTYPES and self.takes(tensor)

    def stop(self) -> None:
        """End the waiting for ranks that are lost, now and from now on. Call it from any thread."""
        self._mailboxes.stop[0] = 1

    def close(self) -> None:
        """Let go of the other ranks' memory."""
        self._memory.close()


def max_one_shot_bytes(ranks: int) -> int:
    """Return the size of the largest tensor that is exchanged in one shot.

    >>> max_one_shot_bytes(2), max_one_shot_bytes(8)
    (2097152, 299008)
    """
    return MAX_SENT_BYTES // (ranks - 1) // BYTES_MULTIPLE * BYTES_MULTIPLE


def fits(tensor: Tensor, most: float) -> bool:
    """Return whether a tensor is of whole words of 32 bits, and of ``most`` bytes at most."""
    return 0 < tensor.nbytes <= most and tensor.nbytes % 4 == 0


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
        for size in (*CHECKED_SIZES, made.most // dtype.itemsize):
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
