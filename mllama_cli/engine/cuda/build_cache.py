"""A record of the kernels that this machine has built for a model's shapes, so that the first wait is explained."""

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch

from mllama_cli import kernels
from mllama_cli.engine.cuda.operands import Operand, groups, module_is_absent, operand
from mllama_cli.engine.forward import Network
from mllama_cli.system.paths import cache_folder

Work = Literal["text", "pictures", "batch"]


def first_time(network: Network, device: torch.device, work: Work) -> bool:
    """Return whether kernels for such work are still to be built."""
    return not _mark(network, device, work).exists()


def remember(network: Network, device: torch.device, work: Work) -> None:
    """Record that they are built; those of pictures include those of text."""
    done: tuple[Work, ...] = ("text", "pictures") if work == "pictures" else (work,)
    for mark in (_mark(network, device, one) for one in done):
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:  # a read-only home: the notice is shown again, nothing else
            return


def _mark(network: Network, device: torch.device, work: Work) -> Path:
    """Return the file that stands for all that decides what is compiled: GPU, versions, shapes, formats, sources."""
    model = network.language_model
    loaded = (m for modules in groups(network) for m in modules if not module_is_absent(m))
    forms = sorted({_form(operand(module)) for module in loaded})
    system = torch.cuda.get_device_capability(device), torch.__version__
    name = f"{system} {model.config} {model.norm.weight.dtype} {forms} {work} {_sources()}"
    return cache_folder() / "kernels" / sha256(name.encode()).hexdigest()[:16]


def _form(matrix: Operand) -> str:
    return str(matrix.dtype) if isinstance(matrix, torch.Tensor) else f"{matrix.bits} bits by {matrix.group_size}"


@cache
def _sources() -> str:
    import triton

    folder = Path(kernels.__path__[0]) / "cuda"
    return str(triton.__version__) + "".join(file.read_text("utf-8") for file in sorted(folder.glob("*.py")))
