"""A batch stepped by our kernels, as on a GPU: in Triton's interpreter, with eager steps in place of captured ones."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.triton_here import DEVICE  # isort: skip  (first: it prepares Triton)

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.grammar import Grammar
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import scheduler
from mllama_cli.engine.batch.captured_prompts import CapturedPromptReader
from mllama_cli.engine.batch.captured_slots import CapturedSlots, LeadingSlotGraphs
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.batch.slots import SlotCaches
from mllama_cli.engine.engine import load
from mllama_cli.model.cache import KVCache
from tests.checkpoints import config_dict, make_checkpoint
from tests.engine.batch.asking import by_key
from tests.engine.conftest import picture
from tests.engine.cuda.replays import Echo, replay_on_cpu

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="tests/gpu does this with captured graphs")


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    replay_on_cpu(monkeypatch)
    monkeypatch.setattr(
        scheduler, "make_slots", lambda model, memory: (CapturedSlots(model, memory.slots), CapturedPromptReader(model))
    )
    monkeypatch.setitem(scheduler.STEPS_AHEAD, "cpu", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"num_hidden_layers": 2, "cross_attention_layers": [0], "intermediate_size": 64}
    text |= {"hidden_size": 128, "num_attention_heads": 4}  # heads of 32: the least that a GPU's matrix units take
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", config_dict(text=text), seed=3)


def requests_for(processor: Callable[[Conversation], Any]) -> list[BatchRequest]:
    red, blue = picture("red"), picture("blue", (120, 40))
    conversations = [
        (Conversation.ask("Hi"), 4),
        (Conversation.ask("?", (red,)), 2),
        (Conversation.ask("", (red, blue)), 3),
        (Conversation.ask("", (red,)), 2),
    ]
    requests = [
        BatchRequest(key, processor(asked), sampling=Sampling(max_tokens=most, temperature=key % 2, seed=key))
        for key, (asked, most) in enumerate(conversations)
    ]
    held = Sampling(max_tokens=4, grammar=Grammar.choices(["ab", "cd"]))
    return [*requests, BatchRequest(len(requests), requests[0].inputs, sampling=held)]


@pytest.mark.parametrize(
    ("slots", "image_kv"),
    [(3, None), (3, "fp8"), *(pytest.param(1, kv, marks=pytest.mark.slow) for kv in (None, "fp8"))],
)
def test_answers_are_those_of_the_network_itself(
    folder: Path, slots: int, image_kv: str | None, request: pytest.FixtureRequest
) -> None:
    engine = load(folder, device="cpu", dtype="float32", vision=True, image_kv=image_kv)
    requests = requests_for(engine.processor)
    expected = by_key(run_batch(engine.model, requests, slots=slots))
    assert len(set(expected.values())) == len(expected)
    request.getfixturevalue("_as_on_a_gpu")
    assert by_key(run_batch(engine.model, requests, slots=slots)) == expected


@pytest.mark.usefixtures("_as_on_a_gpu")
@torch.inference_mode()
def test_other_ranks_step_the_same_slots(folder: Path) -> None:
    model = load(folder, device="cpu", dtype="float32", vision=True).model
    echo = Echo(model.network)
    given = (model.network, model.dtype, model.device, 2)
    graphs = LeadingSlotGraphs(cast("Any", echo), *given)
    config, device = model.network.language_model.config, model.device
    caches = [SlotCaches(KVCache(config, dtype=model.dtype, device=device)) for _ in range(2)]
    for row, each in enumerate(caches):
        each.cache.reserve(4)
        graphs.point(row, each)
    graphs.release(0, 1)
    for busy, token in ((1, 5), (1, 7)):
        graphs.state.tokens[:busy] = token
        echo.twins.part(graphs._name).state.tokens[:busy] = token
        logits = graphs.step(busy, False).clone()
        graphs.advance(busy)
        assert torch.equal(logits, echo.logits[:busy])
        assert logits.abs().sum() > 0
    name = graphs._name
    del graphs
    gc.collect()
    echo.twins.read(echo.names.write(("nothing", (0,))))
    with pytest.raises(KeyError):
        echo.twins.part(name)
