"""Streams of a GPU that a batch needs, the same for every batch.

Libraries keep workspace for every stream that they have seen, up to 32 MiB each.
"""

from functools import cache

import torch


@cache
def steps(device: torch.device) -> torch.cuda.Stream:
    """For a batch's steps. It goes before others: long kernels elsewhere would keep its many short ones waiting."""
    return torch.cuda.Stream(device, priority=-1)


@cache
def captured_steps(device: torch.device) -> torch.cuda.Stream:
    """For capturing steps; their kernels keep its priority."""
    return torch.cuda.Stream(device, priority=-1)


@cache
def pictures(device: torch.device) -> torch.cuda.Stream:
    """For encoding pictures beside the steps."""
    return torch.cuda.Stream(device)
