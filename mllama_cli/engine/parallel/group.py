"""Collective operations of the ranks that share a network: gloo between CPUs, NCCL between GPUs."""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from mllama_cli.engine.parallel.one_shot import OneShot, forbid_multicast, one_shot
from mllama_cli.engine.parallel.plan import Share

dist: Any = torch.distributed
"""The module's groups as objects, without its one group for the process: their types are not declared."""

MEETING_SECONDS = 120
"""How long the ranks wait for each other when they meet."""

COLLECTIVE_SECONDS = 3600
"""How long an operation may take: other ranks' deaths are noticed by other means, and at once."""


class Group:
    """The ranks of one network. All must call the same operations in the same order.

    ``explain`` turns the error of a broken connection into one for users.
    """

    def __init__(
        self, backend: Any, share: Share, explain: Callable[[RuntimeError], Exception] = lambda error: error
    ) -> None:
        self._backend, self.share, self._explain = backend, share, explain
        self._one_shot: OneShot | None = None

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
            backend = _nccl(store, share) if device.type == "cuda" else _gloo(store, share)
        except RuntimeError as error:
            raise explain(error) from error
        group = cls(backend, share, explain)
        group.all_reduce(torch.zeros(1, device=device))  # NCCL connects only now
        if device.type == "cuda":
            group._one_shot = one_shot(backend, store, share, device, str(file), group.all_reduce)
        return group

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by the sum of all ranks'."""
        if self._one_shot is not None and self._one_shot.takes(tensor):
            self._one_shot.all_reduce(tensor)
            return
        self._wait(self._backend.allreduce, [tensor])

    @property
    def is_one_shot(self) -> bool:
        """Whether small tensors are added up through the other GPUs' memory."""
        return self._one_shot is not None

    def stop(self) -> None:
        """End operations of GPUs that wait for a rank that is lost; their results are meaningless. For any thread."""
        if self._one_shot is not None:
            self._one_shot.stop()
        if dist.is_nccl_available() and isinstance(self._backend, dist.ProcessGroupNCCL):
            threading.Thread(target=self._abort, name="end of NCCL", daemon=True).start()

    def _abort(self) -> None:
        with suppress(RuntimeError, AttributeError):  # an error of the rank that is lost, or another version of torch
            self._backend.abort()

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, which have the same shape, in the order of the ranks."""
        everyone = [torch.empty_like(tensor) for _ in range(self.share.count)]
        self._wait(self._backend.allgather, [everyone], [tensor])
        return everyone

    def broadcast(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by that of rank 0."""
        self._wait(self._backend.broadcast, tensor, 0)

    def _wait(self, operation: Callable[..., Any], *arguments: Any) -> None:
        """Run an operation; on a GPU only the current stream waits for it."""
        try:
            operation(*arguments).wait()
        except RuntimeError as error:
            raise self._explain(error) from error


def _gloo(store: Any, share: Share) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    return dist.ProcessGroupGloo(store, share.rank, share.count, options)


def _nccl(store: Any, share: Share) -> Any:
    forbid_multicast()
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    return dist.ProcessGroupNCCL(store, share.rank, share.count, options)
