"""``fast``: images are encoded in float8 where a device has it, and one line says where it has not."""

from pathlib import Path

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import UsageError
from mllama_cli.core.events import Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.weights import float8_vision
from mllama_cli.model.mllama import MllamaForConditionalGeneration
from mllama_cli.model.vision_float8 import Float8VisionLayer
from mllama_cli.system.paths import built_in_model
from tests.checkpoints import make_checkpoint
from tests.engine.conftest import picture


def is_rounded(engine: Engine) -> bool:
    network = engine.network
    assert isinstance(network, MllamaForConditionalGeneration)
    tower = network.model.vision_model
    kinds = {type(layer) for layer in (*tower.transformer.layers, *tower.global_transformer.layers)}
    assert len(kinds) == 1
    return kinds == {Float8VisionLayer}


def notes(engine: Engine, *, vision: bool) -> list[str]:
    return [event.text for event in engine.load_weights(vision=vision) if isinstance(event, Notice)]


@pytest.fixture
def with_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine count as one whose device has float8 products; torch's operations compute them."""
    monkeypatch.setattr(float8_vision, "has_float8", lambda device, dtype: True)


def test_a_cpu_says_once_that_it_changes_nothing() -> None:
    engine = Engine(built_in_model(), "sketch", device="cpu", fast=True)
    assert notes(engine, vision=False) == []
    [note] = notes(engine, vision=True)
    assert note.startswith("--fast changes nothing here")
    assert "compute capability 9.0" in note
    assert notes(engine, vision=True) == []
    assert not is_rounded(engine)


@pytest.mark.usefixtures("with_float8")
def test_the_tower_is_rounded_when_it_is_loaded(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=5)
    engine, exact = load(folder, device="cpu", fast=True), load(folder, device="cpu", vision=True)
    assert not is_rounded(engine)
    asked = Conversation.ask("What is this?", (picture(),))
    events = list(engine.stream(asked, Sampling(temperature=0, max_tokens=4)))
    assert not any(isinstance(event, Notice) for event in events)
    assert is_rounded(engine)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    both = (each.model.vision.encode(pixels, 2) for each in (engine, exact))
    for (keys, _), (others, _) in zip(*both, strict=True):
        assert 1e-4 < float((keys - others).norm() / others.norm()) < 0.1


@pytest.mark.usefixtures("with_float8")
def test_the_built_in_model_answers_as_before() -> None:
    asked = Conversation.ask("How many circles are there?", (picture(),))
    greedy = Sampling(temperature=0, max_tokens=20)
    plain, fast = (load(built_in_model(), device="cpu", vision=True, fast=fast) for fast in (False, True))
    assert is_rounded(fast)
    first, second = (engine.answer_batch([asked], greedy)[0].text for engine in (plain, fast))
    assert first == second


@pytest.mark.usefixtures("with_float8")
def test_a_tower_that_cannot_be_rounded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8_vision, "can_round", lambda tower: False)
    engine = Engine(built_in_model(), "sketch", device="cpu", fast=True)
    [note] = notes(engine, vision=True)
    assert "the vision tower is quantized" in note
    assert not is_rounded(engine)


def test_exact_and_fast_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--exact and --fast are mutually exclusive"):
        load(built_in_model(), device="cpu", exact=True, fast=True)
