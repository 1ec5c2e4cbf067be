"""What the dialects share: one loaded model, its prompts and its answers."""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ContextLengthError, MllamaError, ShuttingDownError, UsageError
from mllama_cli.core.events import Event
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import EngineLoop, LoopStats
from mllama_cli.engine.engine import Engine
from mllama_cli.processing.memory_budget import LARGE_PICTURE_BYTES
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.prepared import prepare_image
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.serving.answer import Answers, EngineRequest, Waker
from mllama_cli.serving.images import MAX_IMAGES, image_reader
from mllama_cli.serving.metrics import Metrics
from mllama_cli.serving.names import ServedNames
from mllama_cli.serving.settings import ServerSettings

T = TypeVar("T")

PREPARING_THREADS = min(16, max(4, os.cpu_count() or 1))
"""Requests whose images are decoded and whose prompts are tokenized at once."""


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
        self._large = threading.Lock()
        """Held while an image that takes much memory is decoded."""
        self._threads = ThreadPoolExecutor(PREPARING_THREADS, "prepare")
        self._control = ThreadPoolExecutor(1, "control")
        """For loading and ending the engine, which must not wait for requests that are being read."""

    @property
    def read_image(self) -> Reader:
        """A new reader, for one request, of what a client names as an image, as ``parse_messages`` expects it."""
        return image_reader(self.settings)

    @property
    def state(self) -> Literal["loading", "ok", "draining"]:
        """What the server does: it loads the weights, takes requests, or shuts down."""
        return "draining" if self._end is not None else "ok" if self._started else "loading"

    def start(self) -> None:
        """Load the weights that are missing and take requests from now on. Blocks meanwhile."""
        for _ in self.engine.load_weights(vision=self.engine.has_vision):
            pass
        self._loop = EngineLoop(
            self.engine.model,
            slots=self.settings.slots,
            max_context=self.max_context,
            max_queue=self.settings.max_queue,
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
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._control.shutdown(wait=False)

    def abort(self) -> None:
        """End all answers now, with an error."""
        for answers in list(self._live):
            answers.cancel()
            answers.fail(ShuttingDownError("The server has shut down before the answer ended"))

    def stats(self) -> LoopStats:
        """Return what the engine is doing; nothing before ``start``."""
        return self._loop.stats() if self._loop is not None else LoopStats(0, 0, 0)

    async def inputs(self, conversation: Conversation) -> ModelInputs:
        """Return the prompt of a conversation, its images decoded, by the checkpoint's chat template."""
        _require_few(conversation.images)
        return await self._prepared(lambda: self.engine.processor(self._with_canvases(conversation)))

    async def raw_inputs(self, text: str, images: Sequence[ImagePart] = ()) -> ModelInputs:
        """Return a prompt verbatim, without the chat template, its images decoded."""
        _require_few(images)
        return await self._prepared(lambda: self.engine.processor.raw(text, [*map(self._with_canvas, images)]))

    def token_inputs(self, ids: Sequence[int]) -> ModelInputs:
        """Return a prompt given as token ids. Raise UsageError for ids that have no text."""
        size = self.engine.config.text_config.vocab_size
        if wrong := [id_ for id_ in ids if not 0 <= id_ < size]:
            raise UsageError(f"the prompt has a token id of {wrong[0]}, and ids are from 0 to {size - 1}")
        return ModelInputs(tuple(ids))

    def sampling(self, **asked: Any) -> Sampling:
        """Return the checkpoint's own sampling, overridden by what was ``asked`` for (None: not asked for)."""
        sampling = Sampling.from_defaults(self.engine.generation_config, **asked)
        return replace(sampling, max_tokens=min(sampling.max_tokens, self.max_context))

    async def answer(self, inputs: ModelInputs, sampling: Sampling) -> AsyncGenerator[Event, None]:
        """Yield the events of one answer, GenerationStats last. Closing the generator cancels the request.

        Raise QueueFullError, ShuttingDownError, ContextLengthError or what the engine raises.
        """
        async with aclosing(self.answers([(inputs, sampling)])) as batches:
            async for batch in batches:
                for _, event in batch:
                    yield event

    async def answers(self, requests: Sequence[EngineRequest]) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Yield events of several answers, with the index of their request: each time all that have come.

        Closing the generator cancels all requests, and so does the first error.
        """
        for inputs, _ in requests:
            self._require_fits(inputs)
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

    async def load(self) -> None:
        """Load the weights if they have left memory; they stay for ``settings.keep_alive``."""
        await self._loaded_loop()
        self._rest()

    async def unload(self) -> None:
        """Drop the weights now, unless a request runs or ``settings.keep_alive`` keeps them for good."""
        self._require_open()
        if self.settings.keep_alive is not None:
            self._stay()
            await self._unload()

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._loop is not None

    def _rest(self) -> None:
        """Drop the weights after a while without requests."""
        if self.settings.keep_alive is not None and not self._live and self._end is None:
            self._stay()
            self._idle = asyncio.get_running_loop().call_later(self.settings.keep_alive, self._leave)

    def _require_open(self) -> None:
        if self.state != "ok":
            raise ShuttingDownError("The server takes no requests now", "Ask again when it has started.")

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

    async def _prepared(self, work: Callable[[], ModelInputs]) -> ModelInputs:
        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _with_canvas(self, image: ImagePart) -> ImagePart:
        with ExitStack() as turn:

            def admit(needed: int) -> None:
                if needed > LARGE_PICTURE_BYTES:
                    turn.enter_context(self._large)

            config = self.engine.processor.require_vision().config
            return prepare_image(image, config, admit).without_file()

    def _with_canvases(self, conversation: Conversation) -> Conversation:
        return conversation.with_images(self._with_canvas)


def _require_few(images: Sequence[ImagePart]) -> None:
    """Raise UsageError for more images than one request may have: each takes megabytes before its prompt is known."""
    if len(images) > MAX_IMAGES:
        raise UsageError(f"the request has {len(images)} images, and at most {MAX_IMAGES} are read", "Send fewer.")


def _release_memory() -> None:
    """Give the memory of a model that nothing refers to back to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
