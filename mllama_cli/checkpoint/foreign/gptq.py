"""GPTQ, as AutoGPTQ, GPTQModel and AutoRound write it: words along the inputs, zero points, and an order of columns."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from mllama_cli.checkpoint.foreign.compressed import unpack_words
from mllama_cli.checkpoint.foreign.parts import Parts, Row, require_finite, row_blocks
from mllama_cli.checkpoint.foreign.refused import unsupported
from mllama_cli.checkpoint.stored import Form, Packing
from mllama_cli.core.text import shown

if TYPE_CHECKING:
    from torch import Tensor

    from mllama_cli.kernels.packed import PackedWeight

_ENDS = (".qweight", ".qzeros", ".scales", ".g_idx")


def _recognize(parts: Parts) -> Form:
    words, rows = parts.shape(".qweight", -1, -1, dtypes=("I32",))
    groups, scale_rows = parts.shape(".scales", -1, -1)
    if scale_rows != rows and scale_rows == 8 * rows:
        raise unsupported("AWQ")
    zero_rows, zero_words = parts.shape(".qzeros", -1, -1, dtypes=("I32",))
    bits = next((bits for bits in (4, 8) if zero_words == -(-rows * bits // 32)), 0)
    if scale_rows != rows or zero_rows != groups or not bits:
        raise parts.wrong(
            ".qweight",
            f"has shape [{words}, {rows}], which with scales [{groups}, {scale_rows}] and zero points "
            f"[{zero_rows}, {zero_words}] is not GPTQ in 4 or 8 bits",
        )
    inputs = words * 32 // bits
    if inputs % groups:
        raise parts.wrong(".scales", f"has {groups} groups, which do not divide {inputs} inputs")
    version_2 = parts.declared.get("checkpoint_format") == "gptq_v2"
    stored = (1 << (bits - 1)) - (0 if version_2 else 1)
    word = sum(stored << shift for shift in range(0, 32, bits)).to_bytes(4, "little")
    symmetric = parts.data(".qzeros") == word * (groups * zero_words)
    in_order = True
    if ".g_idx" in parts:
        parts.shape(".g_idx", inputs, dtypes=("I32",))
        indices = parts.integers(".g_idx")
        if not 0 <= min(indices) <= max(indices) < groups:
            raise parts.wrong(".g_idx", f"names a group that is not one of the {groups}: {shown(max(indices))}")
        in_order = all(index == column // (inputs // groups) for column, index in enumerate(indices))
    method = "AutoRound" if parts.declared.get("quant_method") == "auto-round" else "GPTQ"
    label = f"{method} int{bits}" + " asymmetric" * (not symmetric) + " with reordered columns" * (not in_order)
    shape, dtype = (rows, inputs), parts.tensors[".scales"].info.dtype
    dense = partial(_dense, label, bits, version_2)
    if symmetric and in_order:
        packing = Packing(bits, inputs // groups if groups > 1 else 0)
        return Form(label, bits, dtype, shape, dense, packing, partial(_pack, label, bits))
    return Form(label, bits, dtype, shape, dense)


def _dense(label: str, bits: int, version_2: bool, parts: "Mapping[str, Tensor]") -> "Tensor":
    """Return (q - zero point) * scale, computed in the dtype of the scale. Version 1 stores zero points minus 1."""
    import torch

    scale = require_finite(parts[".scales"].t().contiguous(), label)
    words = parts[".qweight"].t().contiguous()
    rows, inputs = words.shape[0], words.shape[1] * 32 // bits
    zero = unpack_words(parts[".qzeros"], bits, rows).t() + (0 if version_2 else 1)
    zero = zero.to(scale.dtype)
    if ".g_idx" in parts:
        group = parts[".g_idx"].to(words.device).long()
    else:
        group = torch.arange(inputs, device=words.device) // (inputs // scale.shape[1])
    out = torch.empty(rows, inputs, dtype=scale.dtype, device=words.device)
    for block in row_blocks(rows, inputs):
        values = unpack_words(words[block], bits, inputs).to(scale.dtype) - zero[block][:, group]
        out[block] = values * scale[block][:, group]
    return out


def _pack(label: str, bits: int, parts: "Mapping[str, Tensor]") -> "PackedWeight":
    """Transpose: both layouts add 2^(bits - 1) and put the first of 32 / bits inputs into the lowest bits."""
    from mllama_cli.kernels.packed import PackedWeight

    words, scale = parts[".qweight"].t().contiguous(), require_finite(parts[".scales"], label).t().contiguous()
    return PackedWeight(words, scale, (words.shape[0], words.shape[1] * 32 // bits), bits)


ROWS = (Row((".qweight",), _ENDS, _recognize),)
