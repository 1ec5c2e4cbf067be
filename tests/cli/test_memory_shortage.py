"""Memory that runs out, in an answer or anywhere else: one clear line, and nothing lost that was said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mllama_cli.core.events import Event
from mllama_cli.engine.forward import Decoder
from mllama_cli.engine.model import LoadedModel
from tests.console import run_here


@pytest.fixture(autouse=True)
def _only_the_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLLAMA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.delenv("MLLAMA_MODEL", raising=False)


def test_memory_that_runs_out_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Decoder.tokens

    def short(self: Decoder, *arguments: Any) -> Iterator[int]:
        tokens = decode(self, *arguments)
        yield next(tokens)
        yield next(tokens)
        raise MemoryError

    monkeypatch.setattr(Decoder, "tokens", short)
    result = run_here("chat", "--max-tokens", "9", "Hello")
    assert result.code == 1
    assert result.out.endswith("\n")
    assert result.out.strip(), "what was said before stays"
    assert "Traceback" not in result.err
    assert "not enough memory for a conversation of" in result.err


def test_memory_that_runs_out_anywhere_else_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(self: LoadedModel, **what: Any) -> Iterator[Event]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LoadedModel, "load", no_room)
    result = run_here("chat", "Hello")
    assert result.code == 1
    assert "There is not enough memory for this" in result.err
    assert "Traceback" not in result.err
    with pytest.raises(RuntimeError, match="out of memory"):
        run_here("chat", "--debug", "Hello")
