"""Matrices in the forms of other tools: bitwise what the tool itself reads, and one clear line for damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mllama_cli.checkpoint.contents import Contents, read_contents
from mllama_cli.checkpoint.reader import torch_dtype
from mllama_cli.checkpoint.slices import SliceReader
from mllama_cli.checkpoint.stored import Form, StoredMatrix
from mllama_cli.core.errors import CheckpointError
from mllama_cli.kernels.packed import dequantize
from tests.checkpoint.foreign.writers import FORMS, gptq

MODULE = "model.language_model.layers.0.mlp.up_proj"
STORED = "language_model.model.layers.0.mlp.up_proj"


def matrix(rows: int = 256, inputs: int = 128) -> Tensor:
    return 0.05 * torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))


def written(folder: Path, tensors: dict[str, Tensor], declared: dict[str, object] | None = None) -> Contents:
    folder.mkdir(exist_ok=True)
    named = {STORED + end: tensor.contiguous() for end, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    return read_contents(folder, declared)


def read_back(contents: Contents) -> tuple[Form, Tensor, dict[str, Tensor]]:
    """Return the form of the one matrix, the dense matrix, and the parts."""
    with SliceReader() as slices:
        if MODULE in contents.packed:
            form = contents.packed[MODULE]
            parts = {name.removeprefix(MODULE): slices.rows(each) for name, each in contents.tensors.items()}
            return form, form.dense(parts), parts
        (found,) = contents.tensors.items()
        assert found[0] == f"{MODULE}.weight"
        stored = found[1]
        assert isinstance(stored, StoredMatrix)
        assert stored.stored_name == f"{STORED}.weight"
        dense = slices.rows(stored)
        assert dense.dtype == torch_dtype(stored.info)
        assert dense.shape == stored.info.shape
        assert torch.equal(slices.rows(stored, 100, 107), dense[100:107])
        return stored.form, dense, {end: slices.rows(part) for end, part in stored.parts.items()}


@pytest.mark.parametrize("name", FORMS)
def test_the_dense_matrix_is_bitwise_the_tool_s_own(name: str, tmp_path: Path) -> None:
    write, label = FORMS[name]
    tensors, expected = write(matrix())
    form, dense, parts = read_back(written(tmp_path / "model", tensors))
    assert form.label == label
    assert torch.equal(dense, expected.view(dense.shape))
    if form.packed is not None:
        exact = dequantize(form.packed(parts))
        torch.testing.assert_close(exact, expected.float(), rtol=2**-7, atol=0)  # the tool rounds to 16 bits


@pytest.mark.parametrize("name", ["GPTQ", "GPTQ 8 bit", "W8A8", "LLM.int8"])
def test_integers_that_our_layout_holds_are_repacked(name: str, tmp_path: Path) -> None:
    form, _, parts = read_back(written(tmp_path / "model", FORMS[name][0](matrix())[0]))
    assert form.packing is not None
    assert form.packed is not None
    packed = form.packed(parts)
    assert not packed.problem
    assert (packed.bits, packed.group_size) == (form.packing.bits, form.packing.group_size or 128)


@pytest.mark.parametrize(
    "name", ["nf4", "nf4 double", "nf4 double in bfloat16", "nf4 in float32", "fp4 double", "FP8_DYNAMIC", "FP8_BLOCK"]
)
def test_packed_matrices_are_bitwise_the_tool_s_own(name: str, tmp_path: Path) -> None:
    tensors, expected = FORMS[name][0](matrix())
    form, _, parts = read_back(written(tmp_path / "model", tensors))
    assert form.packing is not None
    assert form.packed is not None
    packed = form.packed(parts)
    assert not packed.problem
    assert (packed.bits, packed.code) == (form.packing.bits, form.packing.code)
    assert torch.equal(dequantize(packed, expected.dtype), expected.view(packed.shape))
    assert torch.equal(dequantize(packed.rows(100, 107), expected.dtype), expected.view(packed.shape)[100:107])


@pytest.mark.parametrize("name", ["nf4", "FP8_DYNAMIC"])
def test_bytes_at_any_place_of_a_file_are_packed(name: str, tmp_path: Path) -> None:
    tensors, expected = FORMS[name][0](matrix())
    form, _, parts = read_back(written(tmp_path / "model", tensors))
    weight = parts[".weight"]
    moved = torch.empty(weight.numel() + 1, dtype=torch.uint8)[1:]
    moved.copy_(weight.view(torch.uint8).flatten())
    assert form.packed is not None
    packed = form.packed({**parts, ".weight": moved.view(weight.dtype).view(weight.shape)})
    assert torch.equal(dequantize(packed, expected.dtype), expected.view(packed.shape))


def test_a_table_of_another_kind_is_read_dense(tmp_path: Path) -> None:
    tensors, _ = FORMS["nf4"][0](matrix())
    tensors[".weight.quant_map"] = tensors[".weight.quant_map"] * 2
    form, dense, _ = read_back(written(tmp_path / "model", tensors))
    assert form.packing is None
    tensors[".weight.quant_map"] = tensors[".weight.quant_map"] / 2
    assert torch.equal(dense, 2 * read_back(written(tmp_path / "other", tensors))[1])


@pytest.mark.parametrize(("rows", "inputs"), [(64, 96), (7, 32), (5, 36)])
def test_blocks_that_cross_rows_are_read_dense(rows: int, inputs: int, tmp_path: Path) -> None:
    tensors, _ = FORMS["nf4"][0](matrix(rows, inputs))
    contents = written(tmp_path / "model", tensors)
    (stored,) = contents.tensors.values()
    assert isinstance(stored, StoredMatrix)
    assert stored.form.packing is None
    with SliceReader() as slices:
        # bitsandbytes itself reads such blocks wrongly on a CPU, so this compares with what was quantized.
        assert (slices.rows(stored) - matrix(rows, inputs)).norm() < 0.15 * matrix(rows, inputs).norm()


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_v2_stores_zero_points_as_they_are(symmetric: bool, tmp_path: Path) -> None:
    tensors, expected = gptq(symmetric=symmetric, version_2=True)(matrix())
    form, dense, _ = read_back(written(tmp_path / "model", tensors, {"checkpoint_format": "gptq_v2"}))
    assert torch.equal(dense, expected)
    assert (form.packing is not None) == symmetric


def test_blocks_need_not_divide_the_matrix(tmp_path: Path) -> None:
    weight = matrix(300, 200).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    spread = scale.repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :200]
    for end in (".weight_scale", ".weight_scale_inv"):  # the second as transformers' own FP8 writes it
        _, dense, _ = read_back(written(tmp_path / end, {".weight": weight, end: scale}))
        assert torch.equal(dense, (weight.float() * spread).to(dense.dtype))


def test_scales_of_activations_and_of_a_quantized_cache_are_not_weights(tmp_path: Path) -> None:
    tensors, expected = FORMS["FP8 per tensor"][0](matrix())
    extra = {".input_scale": torch.ones(1), ".output_scale": torch.ones(1)}
    assert torch.equal(read_back(written(tmp_path / "model", {**tensors, **extra}))[1], expected)


def _state(**changes: object) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        name = ".weight.quant_state.bitsandbytes__nf4"
        data = {**json.loads(bytes(tensors[name].tolist())), **changes}
        tensors[name] = torch.tensor(list(json.dumps(data).encode()), dtype=torch.uint8)

    return change


def _without(end: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[end]

    return change


def _with(end: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({end: change(tensors[end])})


def _raw(data: bytes) -> Callable[[dict[str, Tensor]], None]:
    name = ".weight.quant_state.bitsandbytes__nf4"
    return lambda tensors: tensors.update({name: torch.tensor(list(data), dtype=torch.uint8)})


LIES: dict[str, tuple[str, Callable[[dict[str, Tensor]], None], str]] = {
    "no state": ("nf4", _without(".weight.quant_state.bitsandbytes__nf4"), "quant_state"),
    "no table": ("nf4", _without(".weight.quant_map"), "quant_map"),
    "no codes": ("nf4", _without(".weight"), "which the bytes"),
    "no outer scales": ("nf4 double", _without(".weight.nested_absmax"), "nested_absmax"),
    "fewer codes": ("nf4", _with(".weight", lambda t: t[:-1]), "which the bytes"),
    "fewer scales": ("nf4", _with(".weight.absmax", lambda t: t[:-1]), "absmax"),
    "more scales": ("nf4 double", _with(".weight.nested_absmax", lambda t: t.repeat(2)), "nested_absmax"),
    "a table of 15": ("nf4", _with(".weight.quant_map", lambda t: t[:-1]), "quant_map"),
    "a larger shape": ("nf4", _state(shape=[1 << 30, 1 << 30]), "which the bytes"),
    "a shape of words": ("nf4", _state(shape=["256", "128"]), "shape"),
    "a negative shape": ("nf4", _state(shape=[-256, -128]), "shape"),
    "three dimensions": ("nf4", _state(shape=[2, 128, 128]), "shape"),
    "no blocks": ("nf4", _state(blocksize=0), "blocks"),
    "blocks of 48": ("nf4", _state(blocksize=48), "blocks"),
    "blocks of true": ("nf4", _state(blocksize=True), "blocks"),
    "huge blocks": ("nf4", _state(blocksize=2**60), "blocks"),
    "another dtype": ("nf4", _state(dtype="__class__"), "dtype"),
    "another type": ("nf4", _state(quant_type="fp4"), "type"),
    "an infinite offset": ("nf4 double", _state(nested_offset=float("inf")), "offset"),
    "no offset's number": ("nf4 double", _state(nested_offset="0"), "offset"),
    "nested where it is not": ("nf4", _state(nested_blocksize=256), "absmax"),
    "a state that is a list": ("nf4", _raw(b"[]"), "cannot be read"),
    "a state that is cut": ("nf4", _raw(b'{"shape"'), "cannot be read"),
    "a state of 100 kB": ("nf4", _raw(b" " * 100_000), "too long"),
    "scales of another row": ("LLM.int8", _with(".SCB", lambda t: t[:-1]), "SCB"),
    "weights that are no int8": ("LLM.int8", _with(".weight", lambda t: t.float()), "weight"),
    "FP8 with too few scales": ("FP8_DYNAMIC", _with(".weight_scale", lambda t: t[:-3]), "weight_scale"),
    "16-bit weights with scales": ("FP8_DYNAMIC", _with(".weight", lambda t: t.bfloat16()), "weight"),
    "scales alone": ("FP8_DYNAMIC", _without(".weight"), "weight"),
    "too few zero points": ("W4A16_ASYM", _with(".weight_zero_point", lambda t: t[:-1]), "weight_zero_point"),
    "a group that is not there": ("W4 reordered", _with(".weight_g_idx", lambda t: t + 1), "weight_g_idx"),
    "a group below 0": ("W4 reordered", _with(".weight_g_idx", lambda t: t - 5), "weight_g_idx"),
    "NVFP4 scales cut": ("NVFP4A16", _with(".weight_scale", lambda t: t[:, :-1]), "weight_scale"),
    "two global scales": ("NVFP4A16", _with(".weight_global_scale", lambda t: t.repeat(2)), "weight_global_scale"),
    "GPTQ without zero points": ("GPTQ", _without(".qzeros"), "qzeros"),
    "GPTQ without scales": ("GPTQ", _without(".scales"), "scales"),
    "GPTQ with words cut": ("GPTQ", _with(".qweight", lambda t: t[:-1]), "g_idx"),
    "GPTQ with a group too much": ("GPTQ", _with(".g_idx", lambda t: t + 1), "g_idx"),
    "GPTQ with rows cut": ("GPTQ", _with(".qweight", lambda t: t[:, :-1]), "qweight"),
}


@pytest.mark.parametrize("lie", LIES)
def test_parts_that_do_not_fit_are_named(lie: str, tmp_path: Path) -> None:
    form, change, named = LIES[lie]
    tensors, _ = FORMS[form][0](matrix())
    change(tensors)
    with pytest.raises(CheckpointError) as error:
        written(tmp_path / "model", tensors)
    assert named in error.value.message
    assert "up_proj" in error.value.message
    assert len(error.value.message.replace(str(tmp_path), "")) < 300
    assert error.value.hint


NOT_FINITE = {
    "nf4": ".weight.absmax",
    "nf4 double": ".weight.nested_absmax",
    "LLM.int8": ".SCB",
    "FP8_DYNAMIC": ".weight_scale",
    "W4A16_ASYM": ".weight_scale",
    "NVFP4A16": ".weight_global_scale",
    "GPTQ": ".scales",
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_scales_that_are_not_finite_are_refused(name: str, tmp_path: Path) -> None:
    tensors, _ = FORMS[name][0](matrix())
    tensors[NOT_FINITE[name]].view(-1)[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        read_back(written(tmp_path / "model", tensors))


REFUSED = {
    "AWQ": {".qweight": torch.zeros(128, 32), ".qzeros": torch.zeros(1, 32), ".scales": torch.zeros(1, 256)},
    "MLX": {".weight": torch.zeros(8, 4), ".scales": torch.zeros(8, 1), ".biases": torch.zeros(8, 1)},
    "HQQ": {".W_q": torch.zeros(8, 4), ".scale": torch.zeros(8, 1), ".zero": torch.zeros(8, 1)},
    "quanto": {".weight._data": torch.zeros(8, 4), ".weight._scale": torch.zeros(8, 1)},
    "torchao": {"._weight_qdata": torch.zeros(8, 4), "._weight_scale": torch.zeros(8, 1)},
    "2:4 sparsity": {".compressed": torch.zeros(8, 4), ".bitmask": torch.zeros(8, 1)},
}


@pytest.mark.parametrize("tool", REFUSED)
def test_other_tools_are_refused_by_name_with_a_way_out(tool: str, tmp_path: Path) -> None:
    tensors = {end: tensor.int() if end in (".qweight", ".qzeros") else tensor for end, tensor in REFUSED[tool].items()}
    with pytest.raises(CheckpointError, match=tool) as error:
        written(tmp_path / "model", tensors)
    assert "mllama quantize" in error.value.hint
