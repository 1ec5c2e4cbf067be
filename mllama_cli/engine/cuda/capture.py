"""Capture work on a CUDA device as a graph, so that many launches become one."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def capture(
    run: Callable[[], Result], stream: torch.cuda.Stream, pool: Any = None, *, warm_up: bool = True
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return a graph of ``run`` and its static result, which each replay overwrites.

    A warm-up run before lets kernels be built and libraries allocate their workspaces.
    """
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        if warm_up:
            run()
        # Not torch.cuda.graph(), which waits for the device: it may be busy with an image.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = run()
        finally:
            graph.capture_end()
    current.wait_stream(stream)
    return graph, result
