"""What the dialects share: one loaded model, its prompts and its answers."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from starlette.requests import Request

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ContextLengthError, MllamaError, ShuttingDownError, UsageError
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import EngineLoop, LoopStats
from mllama_cli.engine.device import host_buffer
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.session import Session
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.serving.answer import Answers, EngineRequest, Waker
from mllama_cli.serving.metrics import Metrics
from mllama_cli.serving.names import ServedNames
from mllama_cli.serving.preparation import Preparation
from mllama_cli.serving.settings import ServerSettings

T = TypeVar("T")


class Service:
    """One engine that answers for all clients, between ``start`` and ``close``.

    Attributes:
        names: the names of the model.
        metrics: what Prometheus reads.

    ``reopen`` returns the same model with its weights not loaded, for ``settings.keep_alive``.
    """

    def __init__(self, engine: Engine, settings: ServerSettings, reopen: Callable[[], Engine] | None = None) -> None:
        self.engine, self.settings = engine, settings
        self.names = ServedNames(engine.name, engine.config)
        self.max_context = min(settings.max_context, engine.model.max_context)
        """Tokens of a prompt and its answer."""
        self.metrics = Metrics(self.names.main, self.stats, settings.max_queue)
        self.keep_alive = settings.keep_alive
        """Seconds from the last answer until the weights leave memory; None for ever."""
        self._reopen = reopen
        if settings.keep_alive is not None and reopen is None:
            raise UsageError("keep_alive needs a function that opens the model again", "Give create_app `reopen`.")
        self._loop: EngineLoop | None = None
        self._started = False
        self._changing = asyncio.Lock()
        """Held while the weights are loaded or dropped."""
        self._idle: asyncio.TimerHandle | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None
        self._live: set[Answers] = set()
        self._waker: Waker | None = None
        self._preparation = Preparation(settings, host_buffer(engine.device))
        self._control = ThreadPoolExecutor(1, "control")
        """For loading and ending the engine, which must not wait for requests that are being read."""

    @property
    def grace(self) -> float:
        """Return the seconds that running answers get to end."""
        return self.settings.grace

    @property
    def state(self) -> Literal["loading", "ok", "failed", "draining"]:
        """What the server does: it loads the weights, takes requests, can take none any more, or shuts down."""
        if self._end is None and self._loop is not None and self._loop.fault is not None:
            return "failed"
        return "draining" if self._end is not None else "ok" if self._started else "loading"

    def start(self) -> None:
        """Load the weights that are missing and take requests from now on. Blocks meanwhile."""
        self._preparation.start(self.engine.processor)
        for _ in self.engine.load_weights(vision=self.engine.has_vision):
            pass
        self._loop = EngineLoop(
            self.engine.model,
            slots=self.settings.slots,
            max_context=self.max_context,
            max_queue=self.settings.max_queue,
            on_prepared=_exempt_from_collection,
        )
        self._started = True

    async def close(self) -> None:
        """Refuse new requests and those that wait, and let running answers end for ``settings.grace`` seconds."""
        if self._end is None:
            self._end = asyncio.create_task(self._close())
        await self._end

    async def _close(self) -> None:
        self._stay()
        if (loop := self._loop) is not None:
            await self._controlled(partial(loop.close, self.settings.grace))
        self.abort()
        self._preparation.close()
        self._control.shutdown(wait=False)
        gc.unfreeze()

    def abort(self) -> None:
        """End all answers now, with an error."""
        for answers in list(self._live):
            answers.cancel()
            answers.fail(ShuttingDownError("The server has shut down before the answer ended"))

    def stats(self) -> LoopStats:
        """Return what the engine is doing; nothing before ``start``."""
        return self._loop.stats() if self._loop is not None else LoopStats(0, 0, 0)

    async def read(self, request: Request, parse: Callable[[dict[str, Any], Reader], T]) -> T:
        """Return what ``parse`` makes of a request's body with a reader of images, on a thread."""
        self._require_open()
        return await self._preparation.read(request, parse)

    async def inputs(self, conversation: Conversation) -> ModelInputs:
        """Return the prompt of a conversation, its images decoded, by the checkpoint's chat template."""
        self._require_open()
        return await self._preparation.inputs(self.engine.processor, conversation)

    async def raw_inputs(self, text: str, images: Sequence[ImagePart] = (), prefill: str = "") -> ModelInputs:
        """Return a prompt verbatim, without the chat template, its images decoded."""
        self._require_open()
        return await self._preparation.raw_inputs(self.engine.processor, text, images, prefill)

    def recent_image(self, digest: str) -> ImagePart | None:
        """Return an image of an earlier request by its digest; None if it is not kept any more."""
        return self._preparation.recent_image(digest)

    def token_inputs(self, ids: Sequence[int]) -> ModelInputs:
        """Return a prompt given as token ids. Raise UsageError for ids that have no text."""
        size = self.engine.config.text_config.vocab_size
        if wrong := [id_ for id_ in ids if not 0 <= id_ < size]:
            raise UsageError(f"the prompt has a token id of {wrong[0]}, and ids are from 0 to {size - 1}")
        return ModelInputs(tuple(ids))

    def sampling(self, **asked: Any) -> Sampling:
        """Return the checkpoint's own sampling, overridden by what was ``asked`` for (None: not asked for)."""
        return self.limited(Sampling.from_defaults(self.engine.generation_config, **asked))

    def limited(self, sampling: Sampling) -> Sampling:
        """Return sampling with a length limit that the context allows."""
        return replace(sampling, max_tokens=min(sampling.max_tokens, self.max_context))

    async def answers(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Yield events of several answers, with the index of their request: each time all that have come.

        Closing the generator cancels all requests, and so does the first error. Raise QueueFullError,
        ShuttingDownError, ContextLengthError or what the engine raises.
        """
        for inputs, sampling in requests:
            self._require_fits(inputs)
            if sampling.grammar is not None:
                await self._preparation.compile(self.engine.model, sampling, inputs.prefill)
        loop = await self._loaded_loop()
        recorders = [self.metrics.begin(len(inputs.ids)) for inputs, _ in requests]
        self._waker = self._waker or Waker()
        answers = Answers(loop, self._waker, requests, recorders)
        self._live.add(answers)
        try:
            async for batch in answers.batches():
                yield batch
        finally:
            answers.cancel()
            for recorder in recorders:
                recorder.cancelled()
            self._live.discard(answers)
            self._rest()

    async def probabilities(self, inputs: ModelInputs, texts: Sequence[str]) -> tuple[float, ...]:
        """Return how likely each text is as the whole answer to a prompt. Other answers wait meanwhile."""
        self._require_fits(inputs)
        loop = await self._loaded_loop()
        try:
            work = loop.run(lambda: Session(loop.model).probabilities_after(inputs, texts))
            return tuple((await asyncio.wrap_future(work)).values())
        finally:
            self._rest()

    def keep(self, seconds: float | None) -> None:
        """Keep the weights for as long after the next answer: for ever if below zero; None changes nothing.

        Only where ``settings.keep_alive`` lets them leave memory, and until they have.
        """
        if seconds is not None and self.settings.keep_alive is not None:
            self.keep_alive = seconds if seconds >= 0 else None

    async def load(self) -> None:
        """Load the weights if they have left memory; they stay for ``keep_alive``."""
        await self._loaded_loop()
        self._rest()

    async def unload(self) -> None:
        """Drop the weights now, unless a request runs or ``settings.keep_alive`` keeps them for good."""
        self._require_open()
        if self.settings.keep_alive is not None:
            self._stay()
            await self._unload()
            if self._loop is None:
                self.keep_alive = self.settings.keep_alive

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loop is not None

    def _rest(self) -> None:
        """Drop the weights after a while without requests."""
        if self.keep_alive is not None and not self._live and self._end is None:
            self._stay()
            self._idle = asyncio.get_running_loop().call_later(self.keep_alive, self._leave)

    def require_not_ending(self) -> None:
        """Raise ShuttingDownError once the server ends."""
        if self.state == "draining":
            raise self._closed()

    def _require_open(self) -> None:
        if self.state != "ok":
            raise self._closed()

    @staticmethod
    def _closed() -> ShuttingDownError:
        return ShuttingDownError("The server takes no requests now", "Ask again when it has started.")

    async def _loaded_loop(self) -> EngineLoop:
        """Return the engine's loop, after loading the weights if they have left memory."""
        self._require_open()
        self._stay()
        if self._loop is None:
            async with self._changing:
                if self._loop is None:
                    await self._controlled(self.start)
            self._require_open()
        assert self._loop is not None
        return self._loop

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _leave(self) -> None:
        self._unloading = asyncio.create_task(self._unload())

    async def _unload(self) -> None:
        """Drop the weights unless a request has come."""
        assert self._reopen is not None
        async with self._changing:
            if self._live or self._end is not None or (loop := self._loop) is None:
                return
            with suppress(MllamaError):  # the model's files are gone: it stays in memory
                engine = await self._controlled(self._reopen)
                if self._live or self._end is not None:
                    return
                self.engine, self._loop = engine, None
                self.keep_alive = self.settings.keep_alive
                await self._controlled(loop.close)
                del loop
                await self._controlled(_release_memory)

    def _require_fits(self, inputs: ModelInputs) -> None:
        if len(inputs.ids) >= self.max_context:
            raise ContextLengthError(
                f"The conversation is {len(inputs.ids)} tokens long, and this server's context is {self.max_context} "
                f"tokens, for the answer too",
                "Shorten the text or start a new conversation.",
            )

    async def _controlled(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._control, work)


def _exempt_from_collection() -> None:
    """Let the garbage collector skip what is there now: a pass over torch's objects stops all answers for 0.1 s."""
    gc.collect()
    gc.freeze()


def _release_memory() -> None:
    """Give the memory of a model that nothing refers to back to the system."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
