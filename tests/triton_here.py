"""Run Triton kernels on the GPU, or on a CPU in Triton's interpreter. Import this before anything that uses Triton."""

import importlib
import pkgutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def import_kernels() -> None:
    """Import every module of kernels, which decides for the process whether their functions are interpreted."""
    import mllama_cli.kernels.cuda as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def index_for_numpy() -> None:
    """Make index operations of the interpreter work before Triton 3.7: numpy 2.4 no longer converts arrays to int."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> Any:
        result = patch(tensor, *scope)

        def index(self: Any) -> int:
            return int(self.handle.data.item())

        scope[0].set_attr(tensor, "__index__", index) if scope else setattr(tensor, "__index__", index)
        return result

    interpreter._patch_lang_tensor = patched


def leave_out_idle_work() -> None:
    """Leave out what the interpreter does for nothing: half of its time, and no result changes.

    It computes whether each integer operation overflows and, without ``debug``, drops the answer; and it prepares
    ``triton.language`` at each call of one kernel function by another, where once for each launch is enough.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    prepare = interpreter._patch_lang
    all_functions = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def call(self: Any, *given: Any, **named: Any) -> Any:
        return self.rewrite()(*given, **named)

    interpreter._patch_lang = lambda _: prepare(all_functions)
    interpreter.InterpretedFunction.__call__ = call


def try_out() -> None:
    """Run a kernel with the features ours need; the first kernel also triggers Triton's lazy imports."""
    import triton.language as tl

    @triton.jit
    def doubled(numbers, count):  # type: ignore[no-untyped-def]
        for index in range(tl.load(count)):
            tl.store(numbers + index, tl.load(numbers + index) * 2)

    numbers = torch.arange(3)
    try:
        doubled[(1,)](numbers, torch.tensor([2]))
    except Exception as error:
        pytest.skip(f"Triton {triton.__version__} cannot interpret kernels here: {error!r}", allow_module_level=True)
    assert numbers.tolist() == [0, 2, 2]


if DEVICE.type == "cpu":
    # The variable is unset again afterwards: other tests and their processes must not see it.
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("TRITON_INTERPRET", "1")
        triton = pytest.importorskip("triton")
        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
            index_for_numpy()
        leave_out_idle_work()
        import_kernels()
        try_out()
else:
    triton = pytest.importorskip("triton")


def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut matrices into large tiles on a CPU: the interpreter takes as long for a small one."""
    from mllama_cli.kernels.cuda import gemv_api as linear

    if DEVICE.type == "cpu":
        choose = linear.choose_gemv_tile
        monkeypatch.setattr(linear, "choose_gemv_tile", lambda *given: replace(choose(*given), rows=64))


def apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative distance of two results."""
    ours, exact = ours.detach().double(), exact.detach().double()
    return float((ours - exact).norm() / exact.norm())


def aligned(tensor: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return a copy at a multiple of 16 elements from ``base``, as everything on a GPU is."""
    size = tensor.element_size()
    room = torch.empty(tensor.numel() + 16, dtype=tensor.dtype, device=tensor.device)
    start = ((base.data_ptr() - room.data_ptr()) // size) % 16
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
