"""compressed-tensors: FP8 and INT8 with scales, packed integers with zero points or an order, and NVFP4.

Our own layout is its symmetric pack-quantized one, whose tensors stay as they are.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from mllama_cli.checkpoint.foreign.parts import FLOATS, Parts, Row, require_finite, row_blocks
from mllama_cli.checkpoint.header import STORED_DTYPES
from mllama_cli.checkpoint.stored import Form, Packing

if TYPE_CHECKING:
    from torch import Tensor

    from mllama_cli.kernels.packed import PackedWeight

_BLOCK = 128
"""Side of the blocks that share a scale, in every file seen."""

_KINDS = {"F8_E4M3": "FP8", "F8_E5M2": "FP8 (E5M2)", "I8": "int8"}
_ACTIVATIONS = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point")
"""Scales of activations, which are not rounded here."""

_PER_WORD = 4

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _recognize_scaled(parts: Parts) -> Form:
    rows, inputs = parts.shape(".weight", -1, -1, dtypes=tuple(_KINDS))
    inverse = ".weight_scale_inv" in parts
    end = ".weight_scale_inv" if inverse else ".weight_scale"
    shape = parts.shape(end)
    per_row, per_column = _spread(parts, end, shape, rows, inputs)
    zero = ".weight_zero_point" in parts
    if zero:
        parts.shape(".weight_zero_point", *shape, dtypes=("I8", *FLOATS, *_KINDS))
    dtype = "BF16" if inverse else parts.tensors[end].info.dtype
    stored = parts.tensors[".weight"].info.dtype
    label = f"{_KINDS[stored]} {_strategy(per_row, per_column, rows, inputs)}" + (" asymmetric" if zero else "")
    dense = partial(_dense_scaled, label, end, per_row, per_column, dtype)
    if stored == "I8" and not zero and per_row == 1 and inputs % per_column == 0:
        packing = Packing(8, 0 if per_column == inputs else per_column)
        return Form(label, 8, dtype, (rows, inputs), dense, packing, partial(_pack_scaled, label, end))
    if stored == "F8_E4M3" and not zero and inputs % per_column == per_column % _PER_WORD == 0:
        packing = Packing(8, 0 if per_column == inputs else per_column, "fp8")
        return Form(label, 8, dtype, (rows, inputs), dense, packing, partial(_pack_fp8, label, end, per_row))
    return Form(label, 8, dtype, (rows, inputs), dense)


def _spread(parts: Parts, end: str, shape: tuple[int, ...], rows: int, inputs: int) -> tuple[int, int]:
    """Return of how many rows and how many columns each scale is."""
    if shape in ((), (1,)):
        return rows, inputs
    down, across = (*shape, 1)[:2] if len(shape) < 3 else (0, 0)
    sizes = []
    for count, length in ((down, rows), (across, inputs)):
        if count == length:
            size = 1
        elif count == 1:
            size = length
        elif count == -(-length // _BLOCK):
            size = _BLOCK
        elif count and length % count == 0:
            size = length // count
        else:
            raise parts.wrong(end, f"has shape {list(shape)}, which does not fit a matrix [{rows}, {inputs}]")
        sizes.append(size)
    return sizes[0], sizes[1]


def _strategy(per_row: int, per_column: int, rows: int, inputs: int) -> str:
    if per_row == 1:
        return "per channel" if per_column == inputs else f"in groups of {per_column}"
    return "per tensor" if (per_row, per_column) == (rows, inputs) else f"in blocks of {per_row} x {per_column}"


def _dense_scaled(
    label: str, end: str, per_row: int, per_column: int, dtype: str, parts: "Mapping[str, Tensor]"
) -> "Tensor":
    """Return (weight - zero point) * scale, computed in the dtype of the scale."""
    import torch

    weight, scale, zero = parts[".weight"], require_finite(parts[end], label), parts.get(".weight_zero_point")
    rows, inputs = weight.shape
    out = torch.empty(rows, inputs, dtype=getattr(torch, STORED_DTYPES[dtype].torch_name), device=weight.device)

    def spread(table: "Tensor", block: slice) -> "Tensor":
        table = table.view(1, 1) if table.numel() == 1 else table.view(table.shape[0], -1)
        rows_of = torch.arange(block.start, block.stop, device=table.device) // per_row
        return table[rows_of].repeat_interleave(per_column, 1)[:, :inputs] if table.shape[1] > 1 else table[rows_of]

    for block in row_blocks(rows, inputs):
        values = weight[block].to(scale.dtype)
        if zero is not None:
            values -= spread(zero.to(scale.dtype), block)
        out[block] = values * spread(scale, block)
    return out


def _pack_scaled(label: str, end: str, parts: "Mapping[str, Tensor]") -> "PackedWeight":
    from mllama_cli.kernels.packed import PackedWeight, pack

    weight, scale = parts[".weight"], require_finite(parts[end], label)
    return PackedWeight(pack(weight, 8), scale.view(weight.shape[0], -1), (weight.shape[0], weight.shape[1]), 8)


def _pack_fp8(label: str, end: str, per_row: int, parts: "Mapping[str, Tensor]") -> "PackedWeight":
    """Take the bytes as they are, and a scale for each row."""
    import torch

    from mllama_cli.kernels.packed import PackedWeight

    weight, scale = parts[".weight"].contiguous(), require_finite(parts[end], label)
    rows, inputs = weight.shape
    if weight.storage_offset() % _PER_WORD or weight.data_ptr() % _PER_WORD:  # a view of a file, at any of its bytes
        weight = weight.clone()
    scale = scale.view(1, 1) if scale.numel() == 1 else scale.view(scale.shape[0], -1)
    spread = scale.repeat_interleave(per_row, 0)[:rows].contiguous()
    return PackedWeight(weight.view(torch.int32), spread, (rows, inputs), 8, "fp8")


def _recognize_packed(parts: Parts) -> Form:
    if ".weight_global_scale" in parts:
        return _recognize_nvfp4(parts)
    rows, words = parts.shape(".weight_packed", -1, -1, dtypes=("I32",))
    parts.shape(".weight_shape", 2, dtypes=("I64", "I32"))
    found = parts.integers(".weight_shape")
    inputs = found[1]
    bits = next((bits for bits in (4, 8) if inputs > 0 and words == -(-inputs * bits // 32)), 0)
    if found[0] != rows or not bits:
        raise parts.wrong(
            ".weight_packed",
            f"has shape [{rows}, {words}], which does not hold the {list(found)} of {parts.module}.weight_shape "
            "in 4 or 8 bits",
        )
    scale_rows, groups = parts.shape(".weight_scale", -1, -1)
    if scale_rows != rows or inputs % groups:
        raise parts.wrong(
            ".weight_scale", f"has shape [{scale_rows}, {groups}], which does not fit a matrix [{rows}, {inputs}]"
        )
    zero, order = ".weight_zero_point" in parts, ".weight_g_idx" in parts
    if zero:
        parts.shape(".weight_zero_point", -(-rows * bits // 32), groups, dtypes=("I32",))
    if order:
        parts.shape(".weight_g_idx", inputs, dtypes=("I32",))
        indices = parts.integers(".weight_g_idx")
        if max(indices) >= groups or min(indices) < -1:
            raise parts.wrong(".weight_g_idx", f"names a group that is not one of the {groups}")
        order = -1 not in indices
    label = f"int{bits}" + " asymmetric" * zero + " with reordered columns" * order
    dtype = parts.tensors[".weight_scale"].info.dtype
    shape = rows, inputs
    dense = partial(_dense_packed, label, bits, shape, order)
    if zero or order:
        return Form(label, bits, dtype, shape, dense)
    return Form(label, bits, dtype, shape, dense, Packing(bits, inputs // groups if groups > 1 else 0), ours=True)


def unpack_words(words: "Tensor", bits: int, count: int) -> "Tensor":
    """Return the unsigned fields [rows, count], as int32, of int32 words [rows, words], lowest bits first."""
    import torch

    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1)[:, :count]


def _dense_packed(
    label: str, bits: int, shape: tuple[int, int], order: bool, parts: "Mapping[str, Tensor]"
) -> "Tensor":
    """Return (q - zero point) * scale, computed in the dtype of the scale; zero points are packed along the rows."""
    import torch

    words, scale = parts[".weight_packed"], require_finite(parts[".weight_scale"], label)
    (rows, inputs), half = shape, 1 << (bits - 1)
    groups = scale.shape[1]
    if order:
        group = parts[".weight_g_idx"].to(words.device).long()
    else:
        group = torch.arange(inputs, device=words.device) // (inputs // groups)
    zero = None
    if ".weight_zero_point" in parts:
        zero = (unpack_words(parts[".weight_zero_point"].t().contiguous(), bits, rows).t() - half).to(scale.dtype)
    out = torch.empty(rows, inputs, dtype=scale.dtype, device=words.device)
    for block in row_blocks(rows, inputs):
        values = (unpack_words(words[block], bits, inputs) - half).to(scale.dtype)
        if zero is not None:
            values -= zero[block][:, group]
        out[block] = values * scale[block][:, group]
    return out


def _recognize_nvfp4(parts: Parts) -> Form:
    rows, half = parts.shape(".weight_packed", -1, -1, dtypes=("U8",))
    inputs = 2 * half
    if inputs % 16:
        raise parts.wrong(".weight_packed", f"has rows of {inputs} weights, which groups of 16 do not divide")
    parts.shape(".weight_scale", rows, inputs // 16, dtypes=("F8_E4M3",))
    parts.elements(".weight_global_scale", 1)
    return Form("NVFP4", 4, "BF16", (rows, inputs), _dense_nvfp4)


def _dense_nvfp4(parts: "Mapping[str, Tensor]") -> "Tensor":
    """Return the E2M1 values, the low half of a byte first, times their scale; the global scale divides."""
    import torch

    codes = parts[".weight_packed"]
    scale = parts[".weight_scale"].float() / parts[".weight_global_scale"].float().view(1, 1)
    require_finite(scale, "NVFP4")
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=codes.device)
    rows, inputs = codes.shape[0], 2 * codes.shape[1]
    out = torch.empty(rows, inputs, dtype=torch.bfloat16, device=codes.device)
    for block in row_blocks(rows, inputs):
        some = codes[block]
        q = torch.stack((some & 15, some >> 4), -1).flatten(1)
        out[block] = values[q.int()] * scale[block].repeat_interleave(16, 1)
    return out


ROWS = (
    Row(
        (".weight_packed", ".weight_shape"),
        (
            ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx",
            ".weight_global_scale", *_ACTIVATIONS,
        ),
        _recognize_packed,
    ),
    Row(
        (".weight_scale", ".weight_scale_inv"),
        (".weight", ".weight_scale", ".weight_scale_inv", ".weight_zero_point", *_ACTIVATIONS),
        _recognize_scaled,
        unless=(".weight_packed", ".weight_shape"),
    ),
)  # fmt: skip
