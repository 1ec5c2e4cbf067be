"""Matrices as other tools store them, made by the tools, each with the dense matrix that the tool reads back.

GPTQ is packed here, from its published layout.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mllama_cli.kernels.packed import PackedWeight, unpack

Written = tuple[dict[str, Tensor], Tensor]
"""The tensors by the ends of their names, and the dense matrix."""


def bitsandbytes_4bit(
    kind: str, *, double: bool, storage: torch.dtype = torch.uint8, dtype: torch.dtype = torch.bfloat16
) -> Callable[[Tensor], Written]:
    def write(weight: Tensor) -> Written:
        functional = pytest.importorskip("bitsandbytes.functional")
        packed, state = functional.quantize_4bit(
            weight.to(dtype), quant_type=kind, compress_statistics=double, quant_storage=storage
        )
        tensors = {".weight": packed, **{f".weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
        return tensors, functional.dequantize_4bit(packed, state)

    return write


def bitsandbytes_8bit(weight: Tensor) -> Written:
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, scale, _ = functional.int8_vectorwise_quant(weight.half())
    tensors = {".weight": packed, ".SCB": scale, ".weight_format": torch.zeros((), dtype=torch.uint8)}
    return tensors, functional.int8_vectorwise_dequant(packed, scale).bfloat16()


def compressed(preset: str = "", **changes: object) -> Callable[[Tensor], Written]:
    """Return a writer of a preset of compressed-tensors, or of weights with these arguments."""

    def write(weight: Tensor) -> Written:
        compressors = pytest.importorskip("compressed_tensors.compressors")
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme
        from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
        linear.weight.data = weight.to(torch.bfloat16)
        if preset:
            scheme = preset_name_to_scheme(preset, ["Linear"])
        else:
            scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**changes))
        initialize_module_for_quantization(linear, scheme)
        arguments = scheme.weights
        rows, inputs = weight.shape
        across = {"tensor": 1, "channel": 1, "block": inputs // 128}.get(arguments.strategy)
        across = inputs // arguments.group_size if across is None else across
        down = {"tensor": 1, "block": rows // 128}.get(arguments.strategy, rows)
        blocks = linear.weight.data.view(down, rows // down, across, inputs // across)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        if arguments.strategy == "tensor":
            low, high = low.view(1), high.view(1)
        overall = None
        if arguments.strategy == "tensor_group":
            overall = generate_gparam(low.min(), high.max())
            linear.weight_global_scale.data = overall.view(1)
        scale, zero = calculate_qparams(low, high, arguments, global_scale=overall)
        linear.weight_scale.data = scale.to(linear.weight_scale.dtype)
        if hasattr(linear, "weight_zero_point"):
            linear.weight_zero_point.data = zero.to(linear.weight_zero_point.dtype)
        linear.quantization_status = "frozen"
        compressors.compress_module(linear)
        tensors = {f".{name}": tensor.clone() for name, tensor in linear.state_dict().items()}
        compressors.decompress_module(linear)
        return tensors, linear.weight.data.clone()

    return write


def reordered(weight: Tensor) -> Written:
    """Write W4A16 with an order of columns, as compressed-tensors did until it dropped actorder="group"."""
    tensors, _ = compressed(num_bits=4, type="int", strategy="group", group_size=32)(weight)
    group = torch.arange(weight.shape[1]) // 32
    group = group[torch.randperm(len(group), generator=torch.Generator().manual_seed(3))]
    packed, scale = tensors[".weight_packed"], tensors[".weight_scale"]
    q = unpack(PackedWeight(packed, scale, (weight.shape[0], weight.shape[1]), 4))
    return {**tensors, ".weight_g_idx": group.int()}, q.to(scale.dtype) * scale[:, group]


def words(fields: Tensor, bits: int) -> Tensor:
    """Pack fields [..., n] into int32 [..., n * bits / 32], the first in the lowest bits."""
    shifted = fields.long().unflatten(-1, (-1, 32 // bits)) << (bits * torch.arange(32 // bits))
    packed = shifted.sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def gptq(
    bits: int = 4, *, size: int = 32, symmetric: bool = True, order: bool = False, version_2: bool = False
) -> Callable[[Tensor], Written]:
    def write(weight: Tensor) -> Written:
        rows, inputs = weight.shape
        group = torch.arange(inputs) // size
        if order:
            group = group[torch.randperm(inputs, generator=torch.Generator().manual_seed(5))]
        half, most = 1 << (bits - 1), (1 << bits) - 1
        scale = (weight.abs().amax() / half).half().expand(inputs // size, rows).contiguous()
        zero = torch.full(scale.shape, half)
        if not symmetric:
            zero = zero - torch.arange(rows) % 3
        scale = scale * (1 + torch.arange(inputs // size)[:, None] / 64).half()
        q = ((weight / scale.t()[:, group]).round() + zero.t()[:, group]).clamp(0, most)
        dense = (q - zero.t()[:, group]).half() * scale.t()[:, group]
        stored = {
            ".qweight": words(q, bits).t().contiguous(),
            ".qzeros": words(zero - (0 if version_2 else 1), bits),
            ".scales": scale,
            ".g_idx": group.int(),
        }
        return stored, dense

    return write


FORMS: dict[str, tuple[Callable[[Tensor], Written], str]] = {
    "nf4": (bitsandbytes_4bit("nf4", double=False), "bitsandbytes nf4"),
    "nf4 double": (bitsandbytes_4bit("nf4", double=True), "bitsandbytes nf4 (double)"),
    "nf4 double in bfloat16": (
        bitsandbytes_4bit("nf4", double=True, storage=torch.bfloat16),
        "bitsandbytes nf4 (double)",
    ),
    "nf4 in float32": (bitsandbytes_4bit("nf4", double=False, storage=torch.float32), "bitsandbytes nf4"),
    "nf4 of float16": (bitsandbytes_4bit("nf4", double=False, dtype=torch.float16), "bitsandbytes nf4"),
    "fp4": (bitsandbytes_4bit("fp4", double=False), "bitsandbytes fp4"),
    "fp4 double": (bitsandbytes_4bit("fp4", double=True), "bitsandbytes fp4 (double)"),
    "LLM.int8": (bitsandbytes_8bit, "bitsandbytes int8"),
    "FP8_DYNAMIC": (compressed("FP8_DYNAMIC"), "FP8 per channel"),
    "FP8_BLOCK": (compressed("FP8_BLOCK"), "FP8 in blocks of 128 x 128"),
    "FP8 per tensor": (compressed(num_bits=8, type="float", strategy="tensor"), "FP8 per tensor"),
    "W8A8": (compressed("W8A8"), "int8 per channel"),
    "W4A16_ASYM": (compressed("W4A16_ASYM"), "int4 asymmetric"),
    "W8 asymmetric": (
        compressed(num_bits=8, type="int", strategy="group", group_size=32, symmetric=False),
        "int8 asymmetric",
    ),
    "W4 reordered": (reordered, "int4 with reordered columns"),
    "W4A16": (compressed("W4A16"), "int4"),
    "W8A16": (compressed("W8A16"), "int8"),
    "NVFP4A16": (compressed("NVFP4A16"), "NVFP4"),
    "GPTQ": (gptq(), "GPTQ int4"),
    "GPTQ 8 bit": (gptq(8), "GPTQ int8"),
    "GPTQ asymmetric": (gptq(symmetric=False), "GPTQ int4 asymmetric"),
    "GPTQ reordered": (gptq(order=True), "GPTQ int4 with reordered columns"),
}
"""A writer and our label of each form."""
