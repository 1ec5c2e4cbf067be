"""Remember which kernels this machine has built, so that the user can be warned before the first build."""

from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from mllama_cli import kernels
from mllama_cli.engine.cuda.operands import groups, module_is_absent, operand
from mllama_cli.engine.forward import Network
from mllama_cli.quantization.linear import AdaptedLinear
from mllama_cli.system.paths import cache_folder

Work = str
"""What kernels are for: "text", "images", "batch", or a pass of some tokens."""


def first_time(network: Network, device: torch.device, work: Work) -> bool:
    """Return whether the kernels for this work have not been built yet."""
    return not _mark(network, device, work).exists()


def remember(network: Network, device: torch.device, work: Work) -> None:
    """Record that the kernels are built; those for images include those for text."""
    done = ("text", "images") if work == "images" else (work,)
    for mark in (_mark(network, device, one) for one in done):
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:  # a read-only home only means that the notice is shown again
            return


def _mark(network: Network, device: torch.device, work: Work) -> Path:
    """Return a file named by a hash of what determines the kernels: GPU, versions, shapes, formats, sources."""
    model = network.language_model
    loaded = ([module for module in modules if not module_is_absent(module)] for modules in groups(network))
    forms = sorted({tuple(map(_form, modules)) for modules in loaded})
    system = torch.cuda.get_device_capability(device), torch.__version__
    name = f"{system} {model.config} {model.norm.weight.dtype} {forms} {work} {_sources()}"
    return cache_folder() / "kernels" / sha256(name.encode()).hexdigest()[:16]


def _form(module: nn.Module) -> str:
    matrix = operand(module)
    if isinstance(matrix, torch.Tensor):
        return str(matrix.dtype)
    change = f" and rank {module.lora_a.shape[0]}" if isinstance(module, AdaptedLinear) else ""
    return f"{matrix.bits} bits by {matrix.group_size} {matrix.code}{change}"


@cache
def _sources() -> str:
    import triton

    folder = Path(kernels.__path__[0]) / "cuda"
    return str(triton.__version__) + "".join(file.read_text("utf-8") for file in sorted(folder.glob("*.py")))
