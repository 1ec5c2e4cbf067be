"""Call kernels.cpp on tensors. The library trusts sizes: kernels/ops.py has checked them."""

import ctypes
import os
from functools import cache, lru_cache

import torch
from torch import Tensor

from mllama_cli.kernels.codes import TABLES, Code
from mllama_cli.kernels.cpu.build import build_library
from mllama_cli.kernels.packed import PackedWeight

MAX_GEMV_ROWS = 8
"""Rows up to which the float32 kernels read a matrix in place; for more, it is converted part by part."""

MAX_CODE_ROWS = 32
"""The same for numbers that are not integers, whose conversion takes longer: at 64 rows it is worth it."""

MAX_INT8_GEMV_ROWS = 2
"""Rows up to which the 8-bit kernel reads the matrix row by row; for more, it transposes eight rows at a time."""

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FORMS = {torch.bfloat16: 2, torch.float16: 3}


class Native:
    """The compiled kernels. ``x`` is float32 [rows, in], contiguous, and products are float32 [rows, out]."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        matrix = (_POINTER, _POINTER, _INT, _LONG, _LONG, _LONG, _LONG, _INT)
        self._int8 = loaded.mllama_packed_int8
        self._int8.argtypes = (_POINTER, _LONG, *matrix, _POINTER, _INT, _INT)
        self._gemv = loaded.mllama_gemv_float
        self._gemv.argtypes = (_POINTER, _LONG, *matrix, _POINTER, _POINTER, _INT)
        self._decode = loaded.mllama_decode
        self._decode.argtypes = (*matrix, _POINTER, _POINTER, _INT)
        self._rms_norm = loaded.mllama_rms_norm
        self._rms_norm.argtypes = (_POINTER, _POINTER, _LONG, _LONG, ctypes.c_float, _POINTER)
        self._apply_rope = loaded.mllama_apply_rope
        self._apply_rope.argtypes = (_POINTER, *(_LONG,) * 7, _POINTER, _POINTER, _LONG, _POINTER)
        self._silu_and_mul = loaded.mllama_silu_and_mul
        self._silu_and_mul.argtypes = (_POINTER, _POINTER, _LONG, _POINTER, _INT)
        self._attention = loaded.mllama_attention
        self._attention.argtypes = (_POINTER, _POINTER, _POINTER, *(_LONG,) * 8, _POINTER, _INT)

    @staticmethod
    def supports(weight: PackedWeight) -> bool:
        """Return whether the group size is supported: 32, a multiple of 64, or whole rows."""
        groups, size = weight.scale.shape[1], weight.group_size
        return groups == 1 or size == 32 or size % 64 == 0

    def int8(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """Multiply x, rounded to 8 bits with a scale for every 32 values, by a packed matrix."""
        out = x.new_empty(x.shape[0], weight.shape[0])
        _check(
            self._int8(
                x.data_ptr(),
                x.shape[0],
                *_packed(weight),
                weight.bits,
                out.data_ptr(),
                MAX_INT8_GEMV_ROWS,
                torch.get_num_threads(),
            )
        )
        return out

    def packed(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """Multiply x by a packed matrix in float32, for few rows."""
        out = x.new_empty(x.shape[0], weight.shape[0])
        form = {"int": 0 if weight.bits == 4 else 1, "fp8": 4}.get(weight.code, 5)
        given = x.data_ptr(), x.shape[0], *_packed(weight), form, _table(weight.code)
        _check(self._gemv(*given, out.data_ptr(), torch.get_num_threads()))
        return out

    def half(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply x by a bfloat16 or float16 matrix [out, in] in float32, for few rows."""
        out = x.new_empty(x.shape[0], weight.shape[0])
        n, k = weight.shape
        matrix = (weight.data_ptr(), None, 0, n, k, 2 * k, 1, _FORMS[weight.dtype])
        _check(self._gemv(x.data_ptr(), x.shape[0], *matrix, None, out.data_ptr(), torch.get_num_threads()))
        return out

    @staticmethod
    def supports_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Return whether ``attention`` takes these."""
        return (
            q.dtype == k.dtype == v.dtype == torch.float32
            and q.shape[2] <= MAX_GEMV_ROWS
            and q.shape[3] == k.shape[3] == v.shape[3]
            and q.shape[3] % 8 == 0
            and q.shape[:2] == k.shape[:2] == v.shape[:2]
            and k.shape[2] == v.shape[2] > 0
            and k.stride(3) == v.stride(3) == 1
        )

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from few rows q [B, heads, rows, D] to all of k and v [B, heads, keys, D]; return q's shape."""
        q = q.contiguous()
        out = torch.empty_like(q)
        threads = torch.get_num_threads()
        for one_q, one_k, one_v, one_out in zip(q, k, v, out, strict=True):
            heads, rows, dim = one_q.shape
            strides = (*one_k.stride()[:2], *one_v.stride()[:2])
            pointers = (one_q.data_ptr(), one_k.data_ptr(), one_v.data_ptr())
            _check(self._attention(*pointers, heads, rows, one_k.shape[1], dim, *strides, one_out.data_ptr(), threads))
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Divide x [..., size], contiguous, by its root mean square and multiply by weight [size]."""
        out, size = torch.empty_like(x), x.shape[-1]
        self._rms_norm(x.data_ptr(), weight.data_ptr(), x.numel() // size, size, eps, out.data_ptr())
        return out

    def apply_rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x [B, heads, L, D] (stride 1 in D) by angles [B or 1, 1, L, D], contiguous; return it contiguous."""
        out = x.new_empty(x.shape)
        step = cos.stride(0) if cos.shape[0] > 1 else 0
        pointers = cos.data_ptr(), sin.data_ptr()
        self._apply_rope(x.data_ptr(), *x.shape, *x.stride()[:3], *pointers, step, out.data_ptr())
        return out

    def silu_and_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(gate) * up, both contiguous."""
        out = torch.empty_like(gate)
        pointers = gate.data_ptr(), up.data_ptr()
        self._silu_and_mul(*pointers, gate.numel(), out.data_ptr(), torch.get_num_threads())
        return out

    def decode(self, weight: PackedWeight, start: int, stop: int, out: Tensor) -> None:
        """Dequantize rows ``start`` to ``stop`` of a packed matrix into ``out``, float32 [stop - start, in]."""
        part, threads = weight.rows(start, stop), torch.get_num_threads()
        _check(self._decode(*_packed(part), weight.bits, _table(weight.code), out.data_ptr(), threads))


def _packed(weight: PackedWeight) -> tuple[int, int, int, int, int, int, int]:
    packed, scale = weight.packed, weight.scale
    kind = _KINDS[scale.dtype]
    return packed.data_ptr(), scale.data_ptr(), kind, *weight.shape, packed.shape[1] * 4, scale.shape[1]


def _table(code: Code) -> int | None:
    """Return the address of the values of all codes, float32; None for integers."""
    return None if code == "int" else _values(code).data_ptr()


@cache
def _values(code: Code) -> Tensor:
    if code == "fp8":
        return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return torch.tensor(TABLES[code])


def _check(code: int) -> None:
    if code:
        raise MemoryError("no memory is left for a matrix product")


@lru_cache(maxsize=1)
def _built() -> tuple[Native | None, str]:
    """Return the compiled kernels, if they can be had, and what the user should know about them."""
    built = build_library()
    return (Native(built.library) if built.library else None), built.note


def native() -> Native | None:
    """Return the compiled kernels; None without a compiler, or if they are ``disabled``."""
    return None if disabled() else _built()[0]


def native_note() -> str:
    """Return in one line why the kernels are slow to start or missing; empty if they are not, or not wanted."""
    note = "" if disabled() else _built()[1]
    if not note or native() is not None:
        return note and f"The CPU kernels work, but {note}"
    return f"Falling back to PyTorch on this CPU, which is slower: {note}"


def disabled() -> bool:
    """Return whether the user has turned our CPU kernels off (MLLAMA_CPU_KERNELS=off)."""
    return os.environ.get("MLLAMA_CPU_KERNELS") == "off"
