"""Collective operations of the ranks that share a network: gloo between CPUs, NCCL between GPUs."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllama_cli.engine.device import make_current
from mllama_cli.engine.parallel.nccl import NcclEnd, dist, nccl_backend
from mllama_cli.engine.parallel.one_shot import OneShot, one_shot
from mllama_cli.engine.parallel.plan import Share
from mllama_cli.system.interrupts import defer_interrupts

MEETING_SECONDS = 120
"""How long the ranks wait for each other when they meet."""

COLLECTIVE_TIME = timedelta(hours=1)
"""How long an operation may take: other ranks' deaths are noticed by other means, and at once."""

POLL_SECONDS = 0.05

END_SECONDS = 1.0
"""How long to wait until NCCL has ended; where graphs that hold its operations live on, it ends after them."""


class Group:
    """The ranks of one network. All must call the same operations in the same order.

    ``explain`` turns the error of a broken connection into one for users.
    """

    def __init__(
        self, backend: Any, share: Share, explain: Callable[[RuntimeError], Exception] = lambda error: error
    ) -> None:
        self._backend, self.share, self._explain = backend, share, explain
        self._one_shot: OneShot | None = None
        self._nccl: NcclEnd | None = None
        if dist.is_nccl_available() and isinstance(backend, dist.ProcessGroupNCCL):
            self._nccl = NcclEnd(backend)
            weakref.finalize(self, self._nccl.begin)

    @classmethod
    def meet(
        cls,
        file: Path,
        share: Share,
        device: torch.device,
        explain: Callable[[RuntimeError], Exception] = lambda error: error,
    ) -> "Group":
        """Return the group of all ranks that meet at a file, which GPUs need as long as they are a group."""
        store = dist.FileStore(str(file), share.count)
        store.set_timeout(timedelta(seconds=MEETING_SECONDS))
        try:
            is_gpu = device.type == "cuda"
            backend = nccl_backend(store, share, COLLECTIVE_TIME) if is_gpu else _gloo(store, share)
        except RuntimeError as error:
            raise explain(error) from error
        group = cls(backend, share, explain)
        group.all_reduce(torch.zeros(1, device=device))  # NCCL connects only now
        if is_gpu:
            group._one_shot = one_shot(share, device, group.all_reduce, group.all_gather)
        return group

    @property
    def is_one_shot(self) -> bool:
        """Whether small tensors are exchanged through the other GPUs' memory."""
        return self._one_shot is not None

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by the sum of all ranks'."""
        if self._one_shot is not None and self._one_shot.adds_up(tensor):
            self._one_shot.all_reduce(tensor)
        else:
            self._wait(self._backend.allreduce, [tensor])

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the contiguous tensors of all ranks [ranks, ...], of one shape, in the order of the ranks."""
        if self._one_shot is not None and self._one_shot.takes(tensor):
            return self._one_shot.all_gather(tensor)
        everyone = torch.empty((self.share.count, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
        self._wait(self._backend.allgather, [list(everyone)], [tensor])
        return everyone

    def broadcast(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by that of rank 0."""
        if self._one_shot is not None and self._one_shot.takes(tensor):
            self._one_shot.broadcast(tensor)
        else:
            self._wait(self._backend.broadcast, tensor, 0)

    def stop(self) -> None:
        """End operations of GPUs that wait for other ranks; there can be no more. For any thread."""
        if self._one_shot is not None:
            self._one_shot.stop()
        if self._nccl is not None:
            self._nccl.begin()

    def close(self) -> None:
        """Let go of what GPUs share, once all other ranks have ended. It takes END_SECONDS at most."""
        self.stop()
        if self._nccl is not None and self._nccl.wait(END_SECONDS) and self._one_shot is not None:
            self._one_shot.close()

    def _wait(self, operation: Callable[..., Any], *arguments: Any) -> None:
        """Run an operation; on a GPU only the current stream waits for it."""
        try:
            operation(*arguments).wait()
        except RuntimeError as error:
            raise self._explain(error) from error


class Meeting:
    """All ranks meet on a thread of their own while they load their weights: NCCL takes more than a second."""

    def __init__(
        self,
        file: Path,
        share: Share,
        device: torch.device,
        explain: Callable[[RuntimeError], Exception] = lambda error: error,
    ) -> None:
        """Begin; the arguments are those of ``Group.meet``."""
        self._group: Group | None = None
        self._error: Exception | None = None
        self._ended = threading.Event()

        def meet() -> None:
            try:
                make_current(device)
                with side_stream(device):
                    self._group = Group.meet(file, share, device, explain)
            except Exception as error:
                self._error = error
            self._ended.set()

        with defer_interrupts():
            threading.Thread(target=meet, name="meeting of ranks", daemon=True).start()

    def group(self, check: Callable[[], None] = lambda: None) -> Group:
        """Wait for the group; meanwhile ``check`` may raise an error. Raise that of the meeting."""
        while not self._ended.wait(POLL_SECONDS):
            check()
        if self._error is not None:
            raise self._error
        assert self._group is not None
        return self._group


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Let the GPU do what the block gives it beside other work, and wait for it."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _gloo(store: Any, share: Share) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = COLLECTIVE_TIME
    return dist.ProcessGroupGloo(store, share.rank, share.count, options)
