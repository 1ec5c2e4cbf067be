"""What a person is told once about this machine: other formats, kernels that have to be built first."""

from pathlib import Path

import pytest
import torch

from mllama_cli.core.events import Event, LoadProgress, Notice
from mllama_cli.engine import fast as fast_decoding
from mllama_cli.engine.cuda import build_cache as built
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.fast import FastDecoding
from mllama_cli.engine.weights import place as stored
from tests.checkpoints import make_checkpoint


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def test_a_gpu_without_bfloat16_says_what_it_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=1, dtype=torch.bfloat16)
    monkeypatch.setattr(stored, "choose_dtype", lambda *_: torch.float16)  # as for compute capability 7.5
    engine = Engine(folder, "model", device="cpu")
    first = list(engine.load_weights())
    assert len(notices(first)) == 1
    assert "float16" in notices(first)[0]
    assert any(isinstance(event, LoadProgress) for event in first)
    assert notices(list(engine.load_weights(vision=True))) == []

    asked = Engine(folder, "model", device="cpu", dtype="float16")
    assert notices(list(asked.load_weights())) == [], "whoever asks for float16 knows it"


def test_the_first_batch_on_a_gpu_is_announced(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(engine.prepare_batch()) == [], "on a CPU nothing is built"
    marks = tmp_path / "marks"
    monkeypatch.setattr(built, "_mark", lambda network, device, work: marks / work)
    monkeypatch.setattr(fast_decoding, "triton_available", lambda device: True)
    monkeypatch.setattr(fast_decoding.torch, "empty", lambda *_, **__: None)
    fast = FastDecoding(torch.bfloat16, torch.device("cuda"))
    assert len(notices(list(fast.prepare_batch(engine.network)))) == 1
    assert list(fast.prepare_batch(engine.network)) == []


def test_kernels_of_text_are_built_with_those_of_pictures(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built, "_mark", lambda network, device, work: tmp_path / work)
    network, device = engine.network, torch.device("cuda")
    built.remember(network, device, "text")
    assert not built.first_time(network, device, "text")
    assert built.first_time(network, device, "pictures")
    built.remember(network, device, "pictures")
    (tmp_path / "text").unlink()
    built.remember(network, device, "pictures")
    assert not built.first_time(network, device, "text")
