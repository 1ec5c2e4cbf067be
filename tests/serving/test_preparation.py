"""Requests before the engine sees them: images are decoded once, elsewhere, and what is slow delays only itself."""

import asyncio
import base64
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from starlette.requests import Request
from starlette.types import Message

from mllama_cli.core.config import ImageProcessorConfig
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ImageError
from mllama_cli.engine.engine import Engine
from mllama_cli.processing.message_parts import Reader
from mllama_cli.processing.prepared import PreparedImage
from mllama_cli.processing.processor import ModelInputs
from mllama_cli.processing.sources import DATA_URL_NAME
from mllama_cli.serving.preparation import FETCHING_THREADS, IMAGES_AT_ONCE, Preparation
from mllama_cli.serving.prepared_images import BEYOND_KEPT, PreparedImages
from mllama_cli.serving.settings import ServerSettings
from tests.processing.pictures import file_of, noise
from tests.serving.running import Server, image_part, serving, wait_until

CONFIG = ImageProcessorConfig(tile_size=56)
PIXELS = 3 * 56 * 56
"""Bytes of an image of one tile."""
TEXT = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 2}


def picture(seed: int) -> ImagePart:
    return ImagePart(file_of(noise(40, 40 + seed)))


@pytest.fixture
def store() -> Iterator[PreparedImages]:
    made = PreparedImages(limit=2 * PIXELS)
    yield made
    made.decoder.close()


@pytest.fixture
def decoded(store: PreparedImages, monkeypatch: pytest.MonkeyPatch) -> list[ImagePart]:
    """Return the list of images that ``store`` decodes."""
    decoded: list[ImagePart] = []
    decode: Callable[..., PreparedImage] = store.decoder.decode

    def counted(image: ImagePart, config: ImageProcessorConfig) -> PreparedImage:
        decoded.append(image)
        return decode(image, config)

    monkeypatch.setattr(store.decoder, "decode", counted)
    return decoded


def test_threads_that_bring_the_same_image_decode_it_once(store: PreparedImages, decoded: list[ImagePart]) -> None:
    copies = [ImagePart(bytes(bytearray(picture(0).data))) for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda image: store.prepare(image, CONFIG), copies))
    assert len(decoded) == 1
    assert {image.digest for image in found} == {copies[0].digest}
    assert {image.data for image in found} == {b""}


def test_the_latest_images_are_kept(store: PreparedImages, decoded: list[ImagePart]) -> None:
    first, second, third = map(picture, range(3))
    for image in (first, second, first, third):
        store.prepare(image, CONFIG)
    assert decoded == [first, second, third]
    assert [store.find(image.digest) is not None for image in (first, second, third)] == [True, False, True]


def test_memory_for_the_pixels_of_all_images_that_are_kept_is_taken_ahead() -> None:
    taken: list[int] = []

    def buffer(size: int) -> memoryview:
        taken.append(size)
        return memoryview(bytearray(size))

    store = PreparedImages(limit=2 * CONFIG.max_image_tiles * PIXELS, buffer=buffer)
    store.start(CONFIG)
    store.decoder.close()
    assert taken == [CONFIG.max_image_tiles * PIXELS] * (2 + BEYOND_KEPT)


def test_a_damaged_image_is_an_error_for_all_that_bring_it(store: PreparedImages, decoded: list[ImagePart]) -> None:
    broken = ImagePart(picture(0).data[:60], "broken")
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(store.prepare, broken, CONFIG) for _ in range(4)]
    for each in asked:
        with pytest.raises(ImageError):
            each.result()
    with pytest.raises(ImageError):
        store.prepare(broken, CONFIG)
    assert len(decoded) > 1, "it is tried again"


@pytest.fixture
def preparation() -> Iterator[Preparation]:
    made = Preparation(ServerSettings())
    yield made
    made.close()


def test_the_images_of_a_request_keep_their_order(sketch: Engine, preparation: Preparation) -> None:
    images = [picture(seed) for seed in range(IMAGES_AT_ONCE + 3)]
    images.insert(2, ImagePart(images[0].data, "the first again"))

    async def prepared(asked: list[ImagePart]) -> list[ImagePart]:
        question = Conversation.ask("What is this?", tuple(asked))
        return list((await preparation.inputs(sketch.processor, question)).images)

    for asked in (images[:1], images, images[::-1]):
        made = asyncio.run(prepared(asked))
        assert [image.digest for image in made] == [image.digest for image in asked]
        assert all(isinstance(image, PreparedImage) for image in made)


def test_an_image_is_decoded_while_the_rest_of_its_request_is_read(sketch: Engine, preparation: Preparation) -> None:
    preparation.start(sketch.processor)
    image = picture(0)
    body = json.dumps(about(part_of(image))).encode()

    def parse(body: dict[str, Any], read: Reader) -> list[ImagePart]:
        [found] = read(body["messages"][0]["content"][0]["image_url"]["url"])
        wait_until(lambda: preparation.recent_image(found.digest) is not None)
        return [found]

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    found = asyncio.run(preparation.read(Request({"type": "http", "headers": []}, receive), parse))
    assert found == [ImagePart(image.data, DATA_URL_NAME)]


def test_one_damaged_image_fails_its_request_and_no_other(sketch: Engine, preparation: Preparation) -> None:
    broken = ImagePart(picture(0).data[:60], "broken")

    async def both() -> list[ModelInputs | BaseException]:
        asked = [(picture(1), broken, picture(2)), (picture(1), picture(2))]
        talks = [Conversation.ask("What is this?", images) for images in asked]
        work = (preparation.inputs(sketch.processor, talk) for talk in talks)
        return await asyncio.gather(*work, return_exceptions=True)

    failed, fine = asyncio.run(both())
    assert isinstance(failed, ImageError)
    assert isinstance(fine, ModelInputs)


def test_images_that_wait_when_the_server_ends_are_given_up(sketch: Engine, preparation: Preparation) -> None:
    let_go = threading.Event()
    begun = threading.Semaphore(0)

    def hang(image: ImagePart, config: ImageProcessorConfig) -> PreparedImage:
        begun.release()
        assert let_go.wait(60)
        raise ImageError("given up")

    async def ask_and_end() -> list[ModelInputs | BaseException]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PreparedImages, "prepare", lambda _, image, config: hang(image, config))
            talks = [Conversation.ask("What is this?", (picture(seed),)) for seed in range(40)]
            asked = [asyncio.ensure_future(preparation.inputs(sketch.processor, talk)) for talk in talks]
            while not begun.acquire(blocking=False):
                await asyncio.sleep(0.01)
            preparation.close()
            let_go.set()
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)

    ends = asyncio.run(ask_and_end())
    assert {type(each) for each in ends} <= {ImageError, asyncio.CancelledError, RuntimeError}


def about(part: dict[str, Any], text: str = "What is this?") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": text}]}], "max_tokens": 2}


def part_of(image: ImagePart) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(image.data).decode()}"}}


def ask(server: Server, body: dict[str, Any]) -> int:
    return server.post("/v1/chat/completions", body).status_code


def test_an_image_that_comes_again_is_not_encoded_again(sketch: Engine) -> None:
    with serving(sketch) as server:
        for text in ("What is this?", "What is on its left?"):
            assert ask(server, about(image_part("drawing.png"), text)) == 200
        metrics = server.metrics()
    assert metrics["mllama:images_encoded_total"] == metrics["mllama:image_cache_hits_total"] == 1


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process as POSIX does")
def test_a_decoder_that_hangs_or_crashes_delays_its_image_alone(sketch: Engine) -> None:
    before = psutil.Process().children()
    with serving(sketch) as server, ThreadPoolExecutor(1) as thread:
        assert ask(server, about(part_of(picture(0)))) == 200
        workers = [each for each in psutil.Process().children() if each not in before]
        [worker] = [each for each in workers if "decoding_worker.py" in map(os.path.basename, each.cmdline())]
        worker.suspend()
        slow = thread.submit(ask, server, about(part_of(picture(1))))
        assert ask(server, TEXT) == 200
        assert ask(server, about(part_of(picture(0)))) == 200, "an image that is kept"
        assert not slow.done()
        worker.kill()
        assert slow.result() == 200, "by another worker"


def test_hosts_that_hang_delay_only_those_who_name_them(sketch: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, waiting = threading.Event(), threading.Semaphore(0)

    def hang(*arguments: Any, **options: Any) -> ImagePart:
        waiting.release()
        assert let_go.wait(60)
        return picture(0)

    monkeypatch.setattr("mllama_cli.serving.images.fetch_image", hang)
    linked = about({"type": "image_url", "image_url": {"url": "https://slow.example/x.png"}})
    count = FETCHING_THREADS + 4
    with (
        serving(sketch, ServerSettings(allow_image_urls=True, grace=0)) as server,
        ThreadPoolExecutor(count) as threads,
    ):
        asked = [threads.submit(ask, server, linked) for _ in range(count)]
        for _ in range(FETCHING_THREADS):
            assert waiting.acquire(timeout=60)
        try:
            assert ask(server, TEXT) == 200
            assert ask(server, about(part_of(picture(1)))) == 200
            assert not any(each.done() for each in asked)
        finally:
            let_go.set()
        assert {each.result() for each in asked} == {200}
        wait_until(server.idle)
