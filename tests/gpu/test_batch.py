"""Several answers at once on a GPU, from captured steps, are those of the CPU: ``pytest -m gpu tests/gpu``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.batch.slots import Slots
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.sampling import PendingTokens
from mllama_cli.kernels.sdpa import supports_decode_attention
from mllama_cli.processing.images import encode_image
from tests.checkpoints import make_checkpoint
from tests.drawings import opened
from tests.engine.batch.asking import tokens_alone
from tests.engine.batch.loops import PATIENCE, Caller, running, settled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def requests(engine: Engine) -> Iterator[BatchRequest]:
    """Yield requests with images of several shapes and text alone, for long and short answers."""
    for number in range(30):
        question = ("Describe this image.", "Describe this image in detail.", "How many shapes are there?")[number % 3]
        images = (encode_image(opened(number)),) if number % 7 else ()
        inputs = engine.processor(Conversation.ask(question, images))
        yield BatchRequest(number, inputs, sampling=Sampling(max_tokens=(40, 3, 64)[number % 3]))


def answers(engine: Engine, slots: int) -> dict[object, tuple[int, ...]]:
    return {reply.key: reply.ids for reply in run_batch(engine.model, requests(engine), slots=slots)}


def test_refilled_slots_of_a_gpu_answer_as_the_cpu_does_one_by_one() -> None:
    expected = answers(load("sketch", device="cpu", dtype="float32", vision=True), 1)
    engine = load("sketch", device="cuda", dtype="float32", vision=True)
    for slots in (1, 3, 8, 20):
        assert answers(engine, slots) == expected


def test_heads_that_our_attention_does_not_take_are_decoded_step_by_step(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", seed=3)
    cpu, gpu = (load(folder, device=device, dtype="float32", vision=True) for device in ("cpu", "cuda"))
    assert not supports_decode_attention(torch.float32, cpu.config.text_config.head_dim)
    assert answers(gpu, 8) == answers(cpu, 1)


def test_quantized_weights_too() -> None:
    expected = answers(load("sketch", device="cpu", dtype="float32", vision=True, quantize="int8", exact=True), 1)
    assert answers(load("sketch", device="cuda", dtype="float32", vision=True, quantize="int8"), 8) == expected


def test_images_in_8_bits_too() -> None:
    cpu, gpu = (
        load("sketch", device=device, dtype="float32", vision=True, image_kv="fp8") for device in ("cpu", "cuda")
    )
    assert answers(gpu, 8) == answers(cpu, 1)


def test_memory_that_runs_out_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("sketch", device="cuda", dtype="float32", vision=True)
    expected = answers(engine, 2)
    step = Slots.step
    busy = []

    def short(self: Slots) -> PendingTokens:
        busy.append(self.busy)
        if self.busy > 4 and len(busy) > 5:
            torch.empty(2**50, device="cuda")
        return step(self)

    monkeypatch.setattr(Slots, "step", short)
    assert answers(engine, 16) == expected
    assert max(busy) > 4
    assert busy[-1] <= 4


def test_callers_of_a_loop_get_what_the_cpu_answers_them_alone() -> None:
    cpu = load("sketch", device="cpu", dtype="float32", vision=True)
    gpu = load("sketch", device="cuda", dtype="float32", vision=True)
    with running(gpu, slots=8) as loop:
        callers = []
        for request in requests(gpu):
            assert request.sampling is not None
            callers.append(Caller(gpu, loop, request.inputs, request.sampling).submit())
            if len(callers) % 9 == 5:
                callers[-1].begun.wait(PATIENCE)
        callers[17].cancel()
        for number, caller in enumerate(callers):
            if number != 17:
                ours = caller.answer()
                theirs = tokens_alone(cpu, caller.inputs, caller.sampling)
                assert [token.id for token in ours] == [token.id for token in theirs]
        stats = settled(loop)
    assert stats.images_encoded <= 26
