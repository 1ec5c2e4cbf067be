"""The 11B shape over a long answer and many pictures: memory stays what it is. ``pytest -m gpu -s tests/gpu``."""

from collections.abc import Iterator

import pytest
import torch

from mllama_cli.engine.benchmark import Subject, decoded
from mllama_cli.engine.caption_benchmark import caption_rate
from mllama_cli.engine.device import free_bytes
from mllama_cli.engine.fast import FastDecoding
from mllama_cli.engine.random_network import SHAPES, random_network
from mllama_cli.engine.work_sizes import work_sizes
from mllama_cli.model.mllama import MllamaForConditionalGeneration

GIB = 2**30
TOKENS = 2000

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module", params=[None, "int4"], ids=["bfloat16", "int4"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    need = 40 if request.param is None else 24
    if torch.cuda.mem_get_info()[0] < need * GIB:
        pytest.skip(f"needs {need} GiB of free GPU memory")
    device, config = torch.device("cuda", torch.cuda.current_device()), SHAPES["11b"]
    network = random_network(config, dtype=torch.bfloat16, device=device, quantize=request.param)
    work = work_sizes(config, 2, "cuda", free_bytes(device))
    yield Subject(network, FastDecoding(torch.bfloat16, device), config, torch.bfloat16, device, work)
    torch.cuda.empty_cache()


def test_a_long_answer_takes_no_more_memory_than_its_cache(subject: Subject) -> None:
    network = subject.network
    assert isinstance(network, MllamaForConditionalGeneration)
    vision = subject.config.vision_config
    assert vision is not None
    pixels = torch.randn(4, 3, vision.image_size, vision.image_size)
    held: list[int] = []
    for _ in range(2):
        encoded = subject.fast.encode_image(network, pixels, 6)
        for number, _ in enumerate(decoded(subject, encoded, TOKENS)):
            if number == TOKENS * 6 // 10:  # the cache has grown for the last time: 1,200 of 2,048 positions
                held.append(torch.cuda.memory_allocated())
                reserved = torch.cuda.memory_reserved()
            elif number > TOKENS * 6 // 10:
                assert torch.cuda.memory_allocated() == held[-1], f"token {number} took memory"
        assert torch.cuda.memory_reserved() == reserved
    assert subject.fast.obstacle == ""
    assert held[1] <= held[0] + 2**20, "the second answer took more than the first"


def test_captions_leave_nothing_behind(subject: Subject) -> None:
    caption_rate(subject, tokens=8)  # graphs are captured
    before = torch.cuda.memory_allocated()
    rate, count, _ = caption_rate(subject, tokens=8)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20
    print(f"{rate:.1f} pictures/s, {count} at once")
