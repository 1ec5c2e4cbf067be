"""The 11B shape over a long answer and many images does not leak memory. ``pytest -m gpu -s tests/gpu``."""

import gc

import pytest
import torch

from mllama_cli.benchmark.captions import caption_rate
from mllama_cli.benchmark.decode import decoded
from mllama_cli.benchmark.random_network import model_without_tokenizer, random_network
from mllama_cli.engine.device import free_bytes
from mllama_cli.engine.model import LoadedModel
from mllama_cli.engine.weights.memory import choose_prefill_chunk, position_bytes
from mllama_cli.engine.weights.shapes import SHAPES

GIB = 2**30
TOKENS = 2000


def allocated() -> int:
    """Bytes that were asked for and not freed. ``memory_allocated`` also counts what its blocks have too much."""
    gc.collect()
    return int(torch.cuda.memory_stats()["requested_bytes.all.current"])


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module", params=[None, "int4"], ids=["bfloat16", "int4"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    need = 40 if request.param is None else 24
    gc.collect()
    torch.cuda.empty_cache()  # what the models before have left
    if torch.cuda.mem_get_info()[0] < need * GIB:
        pytest.skip(f"needs {need} GiB of free GPU memory")
    device, config = torch.device("cuda", torch.cuda.current_device()), SHAPES["11b"]
    network = random_network(config, dtype=torch.bfloat16, device=device, quantize=request.param)
    chunk = choose_prefill_chunk(config, 2, "cuda", free_bytes(device))
    return model_without_tokenizer(network, config, dtype=torch.bfloat16, device=device, prefill_chunk=chunk)


def test_a_long_answer_takes_no_more_memory_than_its_cache(model: LoadedModel) -> None:
    vision = model.config.vision_config
    assert vision is not None
    pixels = torch.randn(4, 3, vision.image_size, vision.image_size)
    held: list[list[int]] = []
    for _ in range(3):
        encoded = model.vision.encode(pixels, 6)
        tokens = decoded(model, encoded, TOKENS)
        held.append([allocated() for number, _ in enumerate(tokens) if number % 50 == 0])
    most = 2 * TOKENS * position_bytes(model.config, 2)
    for one, other in zip(held[1], held[2], strict=True):
        assert other <= one + 2**20, "an answer took more than the one before"
    assert max(held[2]) - held[2][0] <= most, "an answer took more than its cache"
    assert model.decoder.fallback_reason == ""


def test_captions_leave_nothing_behind(model: LoadedModel) -> None:
    for _ in range(2):  # graphs are captured
        caption_rate(model, tokens=8)
    before = allocated()
    rate, count, _ = caption_rate(model, tokens=8)
    torch.cuda.synchronize()
    assert allocated() <= before + 2**20
    print(f"{rate:.1f} images/s, {count} at once")
