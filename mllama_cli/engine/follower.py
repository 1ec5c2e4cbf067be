"""A process of rank 1 or higher: it does what rank 0 tells it, with its share of the network, and ends with it."""

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from mllama_cli.core.errors import EngineError, MllamaError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.cuda.backend import CapturedDecoder
from mllama_cli.engine.device import make_current
from mllama_cli.engine.forward import DecodeInput
from mllama_cli.engine.parallel.crew import JOIN_SECONDS
from mllama_cli.engine.parallel.exchange import connect
from mllama_cli.engine.parallel.group import Meeting
from mllama_cli.engine.parallel.messages import Name, Twins
from mllama_cli.engine.parallel.team import Failure, JoinRequest
from mllama_cli.engine.weights.opening import OpenedShare
from mllama_cli.model.cache import CrossCache, CrossKVCache, KVCache, SelfCache
from mllama_cli.model.image_kv import Float8KV, ImageKV, LayerKV
from mllama_cli.model.visibility import CrossView, ImageSpan

POLL_SECONDS = 0.05
FINISH_SECONDS = 1.0
"""How long a rank may take to finish what it has been told when rank 0 has hung up."""


class Follower:
    """The operations that rank 0 calls, by the names of the public methods."""

    def __init__(self, request: JoinRequest, connection: Connection) -> None:
        self._connection = connection
        device = self._device = torch.device(request.device)
        make_current(device)
        if device.type == "cpu":
            torch.set_num_threads(request.threads)
        opened: OpenedShare = request.opening(request.share, device)
        self._weights, self._network, self._dtype = opened.weights, opened.network, opened.dtype
        self._model = self._network.language_model
        self.twins = Twins(self._model.config, self._dtype, device)
        self._generators: dict[int, Generator[object, None, object]] = {}
        connection.send("open")
        connection.recv()
        self._meeting = Meeting(request.meeting, request.share, device)
        self._decoder = CapturedDecoder(self._network, self._dtype, device)

    def finish(self) -> NoReturn:
        """End this process once its device is done: rank 0's may be waiting for what it computes."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        os._exit(0)

    def call(self, operation: str, arguments: Sequence[Any]) -> None:
        getattr(self, operation)(*arguments)

    def meet(self) -> None:
        self._group = self._meeting.group()
        connect(self._network, self._group)
        self._connection.send("met")

    def load(self, parts: set[str]) -> None:
        try:
            assert self._weights is not None
            with torch.inference_mode(False):  # threads of the loader, without that mode, write to the tensors
                for _ in self._weights.load(parts):
                    pass
        except MllamaError as error:
            self._connection.send(Failure(type(error), error.message, error.hint))
        else:
            self._connection.send("loaded")

    def begin(self, number: int, operation: str, arguments: Sequence[Any]) -> None:
        self._generators[number] = getattr(self, operation)(*arguments)

    def advance(self, number: int) -> None:
        try:
            next(self._generators[number])
        except (StopIteration, MllamaError):
            del self._generators[number]

    def close(self, number: int) -> None:
        self._generators.pop(number).close()

    def steps(
        self, input_ids: Tensor, cache: KVCache | None, cross: CrossCache | None, view: CrossView | None
    ) -> Generator[None, None, object]:
        return self._model.steps(input_ids, cache, cross, view)

    def run_steps(
        self,
        input_ids: Tensor,
        positions: Tensor,
        cache: SelfCache | None,
        mask: Tensor | None,
        cross: CrossCache | None,
        view: CrossView | None,
    ) -> Generator[None, None, object]:
        return self._model.run_steps(input_ids, self._model.context(positions, cache, mask), cross, view)

    def logits(self, shape: tuple[int, ...]) -> None:
        hidden = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._group.broadcast(hidden)
        self._network.lm_head(hidden)

    def cross_keys_values(self, number: int, shape: tuple[int, ...]) -> None:
        states = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._group.broadcast(states)
        self.twins.add_layers(number, self._model.cross_keys_values(states))

    def join(self, number: int, batch: Sequence[Sequence[ImageKV]]) -> None:
        joined = CrossKVCache.from_images(batch)
        assert joined is not None
        self.twins.add_layers(number, joined.layers)

    def round(self, number: int, layers: Sequence[LayerKV]) -> None:
        self.twins.add_layers(number, Float8KV.of(layers))

    def copy(self, target: KVCache, source: KVCache, row: int, length: int, to_row: int) -> None:
        target.copy_from(source, row, length, to_row=to_row)

    def build(self, with_images: bool, sampling: Sampling, check: bool) -> None:
        self._decoder.build(with_images=with_images, sampling=sampling, check=check)

    def decode(
        self, cache: KVCache, cross: CrossKVCache | None, spans: Sequence[ImageSpan], sampling: Sampling, budget: int
    ) -> Generator[object, None, object]:
        logits = torch.zeros(1, self._model.config.vocab_size, dtype=self._dtype, device=self._device)
        return self._decoder.tokens(DecodeInput(logits, cache, cross, spans, sampling, (), budget))

    def make_slots(self, name: Name, count: int, float8: bool) -> None:
        from mllama_cli.engine.batch.slot_graphs import SlotGraphs  # needs Triton

        self.twins.add(name, SlotGraphs(self._network, self._dtype, self._device, count, float8=float8))

    def make_passes(self, name: Name, float8: bool) -> None:
        from mllama_cli.engine.cuda.passes import CapturedPasses  # needs Triton

        self.twins.add(name, CapturedPasses(self._network, self._dtype, self._device, float8=float8))

    def on_slots(self, name: Name, method: str, *arguments: Any) -> None:
        getattr(self.twins.part(name), method)(*arguments)


def follow(connection: Connection) -> None:
    """Do what rank 0 says until it hangs up, or call the function that it sends, for a process that works alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(connection.fileno(),), daemon=True).start()
    with suppress(EOFError, ConnectionError):
        connection.send("ready")
        request = connection.recv()
        if not isinstance(request, JoinRequest):
            request(connection)
            connection.recv()
            return
        try:
            follower = Follower(request, connection)
        except MllamaError as error:
            connection.send(Failure(type(error), error.message, error.hint))
            connection.recv()
            return
        try:
            with torch.inference_mode(), suppress(EOFError, ConnectionError):
                while True:
                    operation, arguments = follower.twins.read(connection.recv_bytes())
                    follower.call(operation, arguments)
        except Exception:  # out of step with rank 0, which reads why; nothing may delay the end of this process
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        follower.finish()


def follow_at(file: Path, rank: int) -> None:
    """Join rank 0 at its socket, which it opens when it opens the model, and follow it. Raise EngineError."""
    end = time.monotonic() + JOIN_SECONDS
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    while True:
        try:
            line.connect(str(file))
            break
        except OSError as error:
            if time.monotonic() > end:
                raise EngineError(f"Rank 0 has opened no model at {file}") from error
            time.sleep(POLL_SECONDS)
    connection = Connection(line.detach())
    connection.send(rank)
    follow(connection)


def _end_with(descriptor: int) -> None:
    """End this process soon after rank 0 hangs up, whatever it is doing: it may wait for a rank that is gone."""
    poll = select.poll()
    poll.register(descriptor, getattr(select, "POLLRDHUP", select.POLLHUP))  # the former is Linux's
    poll.poll()
    time.sleep(FINISH_SECONDS)
    os._exit(0)
