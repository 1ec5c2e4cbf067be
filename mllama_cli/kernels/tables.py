"""Rows of a table that may lie elsewhere than what asks for them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mllama_cli.kernels.rows import fused


@torch.no_grad()
def reads_host_memory(device: torch.device) -> bool:
    """Whether ``gather`` works in captured graphs of this GPU with a table in host memory."""
    return fused(torch.empty(0, device=device))


def gather(ids: Tensor, table: Tensor) -> Tensor:
    """ids [...], table [rows, size] -> its rows [..., size] where the ids are.

    A table in host memory, pinned, is read by the GPU itself, also in a captured graph. Where our kernels do not run,
    ids and rows cross the bus, which cannot be captured.
    """
    if ids.device == table.device or table.is_cuda:
        return F.embedding(ids, table)
    if fused(ids):
        from mllama_cli.kernels.cuda import host_embedding as tables

        return tables.gather(ids, table)
    return F.embedding(ids.to(table.device), table).to(ids.device)
