"""What stands in for a GPU and other ranks on a CPU: each replay of a graph runs what would have been captured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.triton_here import few_programs  # isort: skip  (first: it prepares Triton)

from mllama_cli.engine.batch import slot_graphs
from mllama_cli.engine.cuda import graphs, passes
from mllama_cli.engine.forward import Network
from mllama_cli.engine.parallel.messages import Names, Twins


class Ready:
    """An event of a device on which all work is done at once."""

    def record(self, stream: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Replays:
    """Takes the place of ``capture``; ``done`` has what has been replayed."""

    def __init__(self) -> None:
        self.done: list[Callable[[], object]] = []

    def __call__(self, run: Callable[[], Any], *_: object) -> tuple["Replay", Any]:
        result = run()
        return Replay(self.done, run, result), result


class Replay:
    """In place of a captured graph."""

    def __init__(self, done: list[Callable[[], object]], run: Callable[[], Any], result: Any) -> None:
        self._done, self._run, self._result = done, run, result

    def replay(self) -> None:
        self._done.append(self._run)
        again = self._run()
        if self._result is not None:
            self._result.copy_(again)


class Echo:
    """In place of the other ranks: it hears what rank 0 tells them, as bytes, and does it with the same network."""

    def __init__(self, network: Network) -> None:
        self.names, self.logits = Names(), torch.empty(0)
        self._given = network, torch.float32, torch.device("cpu")
        self.twins = Twins(network.language_model.config, torch.float32, torch.device("cpu"))

    @contextmanager
    def together(self, operation: str, *arguments: object, alike: bool) -> Iterator[None]:
        heard, (name, *given) = self.twins.read(self.names.write((operation, arguments)))
        if heard == "make_slots":
            count, float8 = given
            self.twins.add(name, slot_graphs.SlotGraphs(*self._given, count, float8=float8))
        elif heard == "make_passes":
            self.twins.add(name, passes.CapturedPasses(*self._given, float8=given[0]))
        elif heard == "on_slots":
            result = getattr(self.twins.part(name), given[0])(*given[1:])
            self.logits = result if isinstance(result, torch.Tensor) else self.logits
        yield


def replay_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """Let the GPU's half of the engine run in Triton's interpreter; return what counts the replays."""
    replays = Replays()
    for module in (graphs, passes, slot_graphs):
        monkeypatch.setattr(module, "capture", replays)
    for module in (passes, slot_graphs):
        monkeypatch.setattr(module, "batch_stream", lambda *_: None)
    for name, stand_in in (("Stream", lambda device: None), ("current_stream", lambda device: None), ("Event", Ready)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(
        "mllama_cli.kernels.cuda.attention_api.TARGET_PROGRAMS", 8
    )  # the interpreter runs them one by one
    monkeypatch.setattr("mllama_cli.engine.cuda.operands.unsupported_reason", lambda *_: "")
    monkeypatch.setattr("mllama_cli.engine.cuda.backend.has_decode_attention", lambda *_: True)
    monkeypatch.setattr("mllama_cli.engine.cuda.build_cache.first_time", lambda *_: False)
    monkeypatch.setattr("mllama_cli.engine.cuda.build_cache.remember", lambda *_: None)
    few_programs(monkeypatch)
    return replays
