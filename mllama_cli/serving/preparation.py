"""Make prompts of what clients send, off the event loop: parse, decode images, apply the template, tokenize."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.loop import complete
from mllama_cli.engine.model import LoadedModel
from mllama_cli.processing.limits import MAX_IMAGES
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.prepared import PreparedImage
from mllama_cli.processing.processor import MllamaProcessor, ModelInputs
from mllama_cli.serving.images import SlowError, image_reader
from mllama_cli.serving.json_response import parse_body, read_body
from mllama_cli.serving.prepared_images import PreparedImages
from mllama_cli.serving.settings import ServerSettings

T = TypeVar("T")

PREPARING_THREADS = 4
"""Requests that are parsed and tokenized at once.

More would only take the interpreter's lock from each other: of 64 requests that come at once with an image, 16 threads
have the first ready after 290 ms, as late as the last, and 4 threads after 20 ms and the last after 100.
"""
IMAGES_AT_ONCE = 4
"""Images of one request that are decoded at once."""
FETCHING_THREADS = 16
"""Requests whose images are downloaded, or drawn from documents, at once, which may take seconds each."""


class Preparation:
    """Threads and worker processes for requests that the engine has not seen yet.

    What is slow has threads of its own, so that a request without images waits for neither hosts nor decoders.
    """

    def __init__(self, settings: ServerSettings, buffer: Callable[[int], memoryview] | None = None) -> None:
        """``buffer`` makes the memory for the pixels of an image."""
        self._settings = settings
        self._images = PreparedImages(buffer=buffer)
        self._config: ImageProcessorConfig | None = None
        self._preparing = ThreadPoolExecutor(PREPARING_THREADS, "prepare")
        self._decoding = ThreadPoolExecutor(max(4, self._images.decoder.workers), "decode")
        self._fetching = ThreadPoolExecutor(FETCHING_THREADS, "fetch")

    def start(self, processor: MllamaProcessor) -> None:
        """Start the workers, so that the first request need not wait for them."""
        if processor.image_processor is not None:
            self._config = processor.image_processor.config
            self._images.start(self._config)
        with suppress(MllamaError):  # a base model has no template
            processor(Conversation.ask("Hello"))

    def close(self) -> None:
        """End the workers; what is being prepared fails."""
        for pool in (self._preparing, self._decoding, self._fetching):
            pool.shutdown(wait=False, cancel_futures=True)
        self._images.decoder.close()

    async def read(self, request: Request, parse: Callable[[dict[str, Any], Reader], T]) -> T:
        """Return what ``parse`` makes of a request's body with a reader of images, which may fetch or draw them.

        Raise UsageError if the body is not a JSON object, and what ``parse`` raises.
        """
        body = await read_body(request)

        def parsed(slow: bool) -> T:
            return parse(parse_body(body), self._reader(slow))

        try:
            return await _run(self._preparing, partial(parsed, slow=False))
        except SlowError:
            return await _run(self._fetching, partial(parsed, slow=True))

    def _reader(self, slow: bool) -> Reader:
        """Return a reader of one request's images, the first of which is decoded while the rest is being read."""
        read_images = image_reader(self._settings, self._images.decoder, slow=slow)
        config = self._config

        def read(source: str | Path) -> tuple[ImagePart, ...]:
            nonlocal config
            images = read_images(source)
            if config is not None and images:
                self._decoding.submit(self._images.prepare, images[0], config)  # its error comes to who asks again
                config = None
            return images

        return read

    async def inputs(self, processor: MllamaProcessor, conversation: Conversation) -> ModelInputs:
        """Return the prompt of a conversation, its images decoded, by the checkpoint's chat template."""
        return await self._with_images(processor, conversation.images, lambda: processor(conversation))

    async def raw_inputs(
        self, processor: MllamaProcessor, text: str, images: Sequence[ImagePart] = (), prefill: str = ""
    ) -> ModelInputs:
        """Return a prompt verbatim, without the chat template, its images decoded."""
        return await self._with_images(processor, images, lambda: processor.raw(text, images, prefill))

    def recent_image(self, digest: str) -> ImagePart | None:
        """Return an image that was prepared lately; None for others."""
        return self._images.find(digest)

    async def compile(self, model: LoadedModel, sampling: Sampling, beginning: str) -> None:
        """Compile what an answer must be, so that the engine's thread need not. Raise UsageError if it cannot."""
        await asyncio.get_running_loop().run_in_executor(self._preparing, model.constraint, sampling, beginning)

    async def _with_images(
        self, processor: MllamaProcessor, images: Sequence[ImagePart], make: Callable[[], ModelInputs]
    ) -> ModelInputs:
        """Return the prompt that ``make`` makes of ``images``, which are decoded meanwhile."""
        if not images:
            return await _run(self._preparing, make)
        if len(images) > MAX_IMAGES:  # each takes megabytes before its prompt is known
            raise UsageError(f"the request has {len(images)} images, and at most {MAX_IMAGES} are read", "Send fewer.")
        config = processor.require_vision().config

        def begin() -> tuple[list[Future[PreparedImage]], ModelInputs]:
            return self._decode(images, config), make()

        coming, inputs = await _run(self._preparing, begin)
        return replace(inputs, images=tuple(await asyncio.gather(*map(asyncio.wrap_future, coming))))

    def _decode(self, images: Sequence[ImagePart], config: ImageProcessorConfig) -> "list[Future[PreparedImage]]":
        """Have images decoded unless they are kept, IMAGES_AT_ONCE at a time: other requests have their turn, too."""
        coming: list[Future[PreparedImage]] = []
        missing: list[tuple[ImagePart, Future[PreparedImage]]] = []
        for image in images:
            coming.append(Future())
            if (kept := self._images.find(image.digest)) is not None:
                coming[-1].set_result(kept)
            else:
                missing.append((image, coming[-1]))
        for first in range(min(IMAGES_AT_ONCE, len(missing))):
            share = missing[first::IMAGES_AT_ONCE]
            self._decoding.submit(self._decode_each, share, config).add_done_callback(partial(_cancel, share))
        return coming

    def _decode_each(
        self, share: "Sequence[tuple[ImagePart, Future[PreparedImage]]]", config: ImageProcessorConfig
    ) -> None:
        for image, future in share:
            complete(future, partial(self._images.prepare, image, config))


def _cancel(share: "Sequence[tuple[ImagePart, Future[PreparedImage]]]", decoded: "Future[None]") -> None:
    """Cancel what was not decoded because the pool has shut down."""
    for _, future in share:
        future.cancel()


async def _run(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
