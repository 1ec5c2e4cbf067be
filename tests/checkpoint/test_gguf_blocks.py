"""GGUF's number formats, held to the gguf package's own decoder bit for bit."""

import numpy as np
import pytest
import torch

from mllama_cli.checkpoint.gguf.blocks import FORMATS, dequantize

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("number", FORMATS, ids=lambda number: FORMATS[number].name)
def test_every_format_is_decoded_as_by_the_gguf_package(number: int) -> None:
    form, kind = FORMATS[number], gguf.GGMLQuantizationType(number)
    assert gguf.GGML_QUANT_SIZES[kind] == (form.elements, form.nbytes)
    data = np.random.default_rng(number).integers(0, 256, (3000, form.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        match form.name:
            case "F32" | "F16":  # which the package leaves as they are
                wanted = data.reshape(-1).view(np.float32 if form.name == "F32" else np.float16).astype(np.float32)
            case _:
                wanted = gguf.quants.dequantize(data, kind).reshape(-1)
    found = dequantize(torch.from_numpy(data).reshape(-1), form).float().numpy()
    assert np.array_equal(np.isnan(wanted), np.isnan(found))
    finite = ~np.isnan(wanted)
    assert finite.sum() > 1000
    assert np.array_equal(wanted[finite].view(np.uint32), found[finite].view(np.uint32))
