"""Imports of other formats use the journal of `quantize`: interrupted anywhere, they go on to the same bytes."""

import itertools
import random
import sys
from pathlib import Path

import pytest
import torch

from mllama_cli.core.events import Event, Notice, QuantizeSummary
from mllama_cli.quantization import quantize as quantize_module
from mllama_cli.quantization.quantize import quantize
from mllama_cli.quantization.rounding import quantize_matrix
from tests.quantization.running import contents, gguf_plan, kill_until_made, run

pytest.importorskip("gguf")

from tests.gguf_models import write_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (file,) = write_gguf(tmp_path_factory.mktemp("gguf") / "model", 2, lambda name: "Q4_K").files
    return file


def test_stopped_after_any_event_it_resumes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_module, "SYNC_BYTES", 1)
    plan, made = gguf_plan(source), tmp_path / "made"
    run(plan, tmp_path / "whole")
    rounded = []
    monkeypatch.setattr(quantize_module, "quantize_matrix", lambda *given: rounded.append(1) or quantize_matrix(*given))
    last: Event | None = None
    for stop in itertools.count(11, 11):
        events = quantize(gguf_plan(source), made)
        for last in itertools.islice(events, stop):
            assert made.exists() == isinstance(last, QuantizeSummary)
        events.close()
        if isinstance(last, QuantizeSummary):
            break
    assert contents(made) == contents(tmp_path / "whole")
    assert len(rounded) <= len(plan.layers.schemes) + stop // 11


def test_another_number_of_bits_or_another_file_begins_again(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for plan in (gguf_plan(source, 4), gguf_plan(source, 16)):
        events = quantize(plan, made)
        for _ in range(40):
            next(events)
        events.close()
    other = tmp_path / "other.gguf"
    other.write_bytes(source.read_bytes())
    events = run(gguf_plan(other), made)
    assert not any(isinstance(event, Notice) and "Resuming" in event.text for event in events)
    run(gguf_plan(source), tmp_path / "whole")
    ours, theirs = contents(made), contents(tmp_path / "whole")
    assert ours["model.safetensors"] == theirs["model.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="starts processes by fork")
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    made, errors = tmp_path / "made", tmp_path / "errors.txt"
    torch.set_num_threads(1)
    kills = kill_until_made("import_gguf", source, made, errors, random.Random(19), first=1, lines=range(3, 10))
    assert kills >= 2
    run(gguf_plan(source), tmp_path / "whole")
    assert contents(made) == contents(tmp_path / "whole")
