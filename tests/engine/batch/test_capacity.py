"""What fits into memory: the number of slots, and which errors mean that memory has run out."""

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import capacity, run
from mllama_cli.engine.batch.capacity import automatic_slots, slot_bytes
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.device import is_out_of_memory
from mllama_cli.engine.engine import Engine
from tests.engine.conftest import picture


def test_a_real_failed_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be reported later", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("The wordlist is out of memory lane", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_only_failed_allocations_count(message: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is expected
    assert not is_out_of_memory(ValueError(message))


def test_automatic_slots_fill_the_free_memory(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    each = slot_bytes(engine.config, engine.dtype.itemsize, 100 + 200, 1)
    text, vision = engine.config.text_config, engine.config.vision_config
    assert vision is not None
    held = 4 * text.num_key_value_heads * text.head_dim * 2 * (300 * 3 + 2 * 4 * vision.tokens_per_tile)
    assert held < each < 1.2 * held, "self and cross keys and values, and logits"
    counts = []
    for free in (0, 2**30, 100 * 2**30):
        monkeypatch.setattr(capacity, "free_bytes", lambda device, free=free: free)
        counts.append(automatic_slots(engine.model, 100, 1, 200))
    assert counts[0] == 1
    assert counts[-1] == capacity.MAX_SLOTS["cpu"]
    monkeypatch.setattr(capacity, "slot_bytes", lambda *_: 100 * 2**20)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 4 * 2**30)
    assert 10 < automatic_slots(engine.model, 100, 1, 200) < 30


def test_the_number_of_slots_is_reported(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "automatic_slots", lambda *_: 3)
    counts: list[int] = []
    inputs = engine.processor(Conversation.ask("?", (picture(),)))
    requests = [BatchRequest(key, inputs, sampling=Sampling(max_tokens=2)) for key in range(5)]
    assert len(list(run_batch(engine.model, iter(requests), on_slots=counts.append))) == 5
    assert len(list(run_batch(engine.model, requests[:2], on_slots=counts.append))) == 2
    assert counts == [3, 2], "two requests need no third slot"
