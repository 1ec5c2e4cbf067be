"""Forms that are not supported, recognized so that they can be refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from mllama_cli.checkpoint.files import WAY_OUT
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown

_REFUSED = {
    ".W_q": "HQQ",
    ".biases": "MLX",
    ".weight._data": "quanto",
    ":_data": "torchao",
    ".weight:qdata": "torchao",
    "._weight_qdata": "torchao",
    ".bitmask": "compressed-tensors with 2:4 sparsity",
    ".meta": "Marlin",
}
"""Tools by the ends of names that only they use."""


def refuse(names: Iterable[str], declared: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with the tool's name, for weights in a form that is not supported."""
    for name in names:
        if tool := next((tool for end, tool in _REFUSED.items() if name.endswith(end)), ""):
            raise unsupported(tool)
    if transforms := declared.get("transform_config"):
        raise unsupported(f"compressed-tensors with transforms (transform_config {shown(transforms)})")


def unsupported(tool: str) -> CheckpointError:
    """Return the error for weights in the form of a tool."""
    return CheckpointError(f"The weights are quantized by {tool}, which is not supported", WAY_OUT)
