"""One-time notices about this machine: another dtype, kernels that have to be built first."""

from pathlib import Path

import pytest
import torch

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import Event, LoadProgress, Notice
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda import backend
from mllama_cli.engine.cuda import build_cache as built
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.weights import loader
from tests.checkpoints import make_checkpoint


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def test_a_gpu_without_bfloat16_says_what_it_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=1, dtype=torch.bfloat16)
    monkeypatch.setattr(loader, "choose_dtype", lambda *_: torch.float16)  # as for compute capability 7.5
    engine = Engine(folder, "model", device="cpu")
    first = list(engine.load_weights())
    assert len(notices(first)) == 1
    assert "float16" in notices(first)[0]
    assert any(isinstance(event, LoadProgress) for event in first)
    assert notices(list(engine.load_weights(vision=True))) == []

    asked = Engine(folder, "model", device="cpu", dtype="float16")
    assert notices(list(asked.load_weights())) == [], "a user who asks for float16 knows it"


def test_the_first_batch_on_a_gpu_is_announced(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(engine.prepare_batch()) == [], "on a CPU nothing is built"
    marks = tmp_path / "marks"
    monkeypatch.setattr(built, "_mark", lambda network, device, work: marks / work)
    monkeypatch.setattr(backend, "triton_available", lambda device: True)
    decoder = CapturedDecoder(engine.network, torch.bfloat16, torch.device("cuda"))
    for _ in range(2):  # until a batch has built them
        assert len(notices(list(decoder.prepare_batch()))) == 1
    decoder.batch_stepped()
    assert list(decoder.prepare_batch()) == []


def test_a_batch_says_when_it_has_stepped(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[int] = []
    monkeypatch.setattr(engine.model.decoder, "batch_stepped", lambda: stepped.append(1))
    engine.answer_batch([Conversation.ask("Hello")], Sampling(max_tokens=1))
    assert not stepped
    engine.answer_batch([Conversation.ask("Hello")], Sampling(max_tokens=3))
    assert stepped


def test_kernels_for_text_are_built_with_those_for_images(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built, "_mark", lambda network, device, work: tmp_path / work)
    network, device = engine.network, torch.device("cuda")
    built.remember(network, device, "text")
    assert not built.first_time(network, device, "text")
    assert built.first_time(network, device, "images")
    built.remember(network, device, "images")
    (tmp_path / "text").unlink()
    built.remember(network, device, "images")
    assert not built.first_time(network, device, "text")
