"""bitsandbytes: 4 bits by a table of 16 values (nf4, fp4), and LLM.int8."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mllama_cli.checkpoint.foreign.parts import FLOATS, Parts, Row, require_finite
from mllama_cli.checkpoint.stored import Form, Packing
from mllama_cli.core.errors import CheckpointError
from mllama_cli.core.text import shown
from mllama_cli.kernels.codes import TABLES, Code
from mllama_cli.system.json_file import parse_object

if TYPE_CHECKING:
    from torch import Tensor

    from mllama_cli.kernels.packed import PackedWeight

_KINDS: tuple[Code, ...] = ("nf4", "fp4")
_STATE = ".weight.quant_state.bitsandbytes__"
_MAX_STATE_BYTES = 64 * 2**10
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_PER_WORD = 8
_BLOCK = 1 << 24  # weights decoded at once, a multiple of every block size
_MAX_BLOCK_SIZE = 1 << 16


@dataclass(frozen=True)
class _State:
    """A quant_state, checked. ``nested`` is the block size of the scales' own scales; 0 without them."""

    kind: str
    dtype: str
    shape: tuple[int, int]
    block: int
    nested: int
    offset: float


def _recognize_4bit(parts: Parts) -> Form:
    kind = next((kind for kind in _KINDS if _STATE + kind in parts), None)
    if kind is None:
        raise parts.wrong(".weight.absmax", "has no quant_state (nf4 or fp4) with it")
    state = _state(parts, _STATE + kind, kind)
    count = math.prod(state.shape)
    main = parts.tensors.get(".weight")
    if main is None or main.nbytes != -(-count // 2):
        raise parts.wrong(
            _STATE + kind, f"says {list(state.shape)}, which the bytes of {parts.module}.weight do not fit"
        )
    blocks = -(-count // state.block)
    parts.elements(".weight.quant_map", 16)
    parts.elements(".weight.absmax", blocks, ("U8",) if state.nested else FLOATS)
    if state.nested:
        parts.elements(".weight.nested_absmax", -(-blocks // state.nested))
        parts.elements(".weight.nested_quant_map", 256)
    label = f"bitsandbytes {kind}" + (" (double)" if state.nested else "")
    form = Form(label, 4, _DTYPES[state.dtype], state.shape, partial(_dense_4bit, state, label))
    if state.shape[1] % state.block or state.block % _PER_WORD or not _is_standard(parts, kind):
        return form
    return replace(form, packing=Packing(4, state.block, kind), packed=partial(_pack_4bit, state, label, kind))


def _is_standard(parts: Parts, kind: Code) -> bool:
    """Return whether the table is the one that every version of bitsandbytes has written."""
    end = ".weight.quant_map"
    return parts.tensors[end].info.dtype == "F32" and parts.data(end) == struct.pack("<16f", *TABLES[kind])


def _state(parts: Parts, end: str, kind: str) -> _State:
    if parts.tensors[end].nbytes > _MAX_STATE_BYTES:
        raise parts.wrong(end, "is too long for a description")
    parts.shape(end, dtypes=("U8",))
    try:
        data = parse_object(parts.data(end), "it", error=CheckpointError, hint="")
    except CheckpointError as error:
        raise parts.wrong(end, f"cannot be read: {error.message}") from error
    shape, block, dtype = data.get("shape"), data.get("blocksize"), data.get("dtype")
    nested, offset = data.get("nested_blocksize", 0), data.get("nested_offset", 0.0)
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 2**31 for n in shape)):
        raise parts.wrong(end, f"says shape {shown(shape)}")
    if not isinstance(block, int) or not _is_block(block) or not (_is_block(nested) or nested == 0):
        raise parts.wrong(end, f"says blocks of {shown(block)} and {shown(nested)}")
    if dtype not in _DTYPES or data.get("quant_type", kind) != kind:
        raise parts.wrong(end, f"says dtype {shown(dtype)} and type {shown(data.get('quant_type'))}")
    if type(offset) not in (int, float) or not math.isfinite(offset):
        raise parts.wrong(end, f"says an offset of {shown(offset)}")
    return _State(kind, str(dtype), (shape[0], shape[1]), block, int(nested), float(offset))


def _is_block(size: Any) -> bool:
    return type(size) is int and 1 < size <= _MAX_BLOCK_SIZE and size & (size - 1) == 0


def _dense_4bit(state: _State, label: str, parts: "Mapping[str, Tensor]") -> "Tensor":
    """Look each 4-bit code up and multiply by its block's scale, in float32, then round to the stored dtype.

    Bitwise equal to bitsandbytes' dequantize_4bit. The high half of a byte comes first.
    """
    import torch

    codes = parts[".weight"].contiguous().reshape(-1).view(torch.uint8)
    scale = _scale_4bit(state, label, parts)
    values = require_finite(parts[".weight.quant_map"].reshape(-1).float(), label)
    dtype: torch.dtype = getattr(torch, state.dtype)
    count = math.prod(state.shape)
    out = torch.empty(count, dtype=dtype, device=codes.device)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        some = codes[start // 2 : -(-stop // 2)]
        q = torch.stack((some >> 4, some & 15), 1).view(-1)[: stop - start]
        scales = scale[start // state.block : -(-stop // state.block)].repeat_interleave(state.block)
        out[start:stop] = values[q.int()] * scales[: stop - start]
    return out.view(state.shape)


def _scale_4bit(state: _State, label: str, parts: "Mapping[str, Tensor]") -> "Tensor":
    """Return the float32 scales of the blocks, which may be stored in 8 bits themselves."""
    scale = parts[".weight.absmax"].reshape(-1)
    if state.nested:
        table = parts[".weight.nested_quant_map"].reshape(-1).float()
        outer = parts[".weight.nested_absmax"].reshape(-1).float()
        scale = table[scale.int()] * outer.repeat_interleave(state.nested)[: scale.numel()] + state.offset
    return require_finite(scale.float(), label)


def _pack_4bit(state: _State, label: str, kind: Code, parts: "Mapping[str, Tensor]") -> "PackedWeight":
    """Swap the halves of each byte: our first number is in the lower one."""
    import torch

    from mllama_cli.kernels.packed import PackedWeight

    codes = parts[".weight"].contiguous().reshape(-1).view(torch.uint8)
    words = ((codes >> 4) | (codes << 4)).view(torch.int32).view(state.shape[0], -1)
    scale = _scale_4bit(state, label, parts).view(state.shape[0], -1)
    return PackedWeight(words, scale.contiguous(), state.shape, 4, kind)


def _recognize_8bit(parts: Parts) -> Form:
    rows, inputs = parts.shape(".weight", -1, -1, dtypes=("I8",))
    parts.elements(".SCB", rows)
    shape = rows, inputs
    label = "bitsandbytes int8"
    return Form(label, 8, "BF16", shape, partial(_dense_8bit, label), Packing(8, 0), partial(_pack_8bit, label))


def _dense_8bit(label: str, parts: "Mapping[str, Tensor]") -> "Tensor":
    """Return q * SCB / 127. The largest activations, which bitsandbytes multiplies in 16 bits, need nothing here."""
    import torch

    weight, scale = parts[".weight"], require_finite(parts[".SCB"].float().view(-1, 1), label) / 127
    return (weight.float() * scale).to(torch.bfloat16)


def _pack_8bit(label: str, parts: "Mapping[str, Tensor]") -> "PackedWeight":
    import torch

    from mllama_cli.kernels.packed import PackedWeight, pack

    weight, scale = parts[".weight"], require_finite(parts[".SCB"].float().view(-1, 1), label) / 127
    # A row of zeros has the scale 0, which our layout does not allow.
    return PackedWeight(
        pack(weight, 8), scale.clamp_min(torch.finfo(torch.float32).tiny), (weight.shape[0], weight.shape[1]), 8
    )


ROWS = (
    Row(
        (".weight.absmax",),
        (
            ".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
            *(_STATE + kind for kind in _KINDS),
        ),
        _recognize_4bit,
    ),
    Row((".SCB",), (".weight", ".SCB", ".weight_format"), _recognize_8bit),
)  # fmt: skip
