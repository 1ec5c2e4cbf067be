"""A batch that keeps the keys and values of images in 8 bits."""

from pathlib import Path

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.errors import UsageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch import capacity
from mllama_cli.engine.batch.capacity import automatic_slots
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.device import HEADROOM
from mllama_cli.engine.engine import Engine, load
from mllama_cli.model.image_kv import Float8KV
from tests.engine.batch.asking import RED, TALL, WIDE, Asked, advance_until, by_key, memory_of

ASK = Sampling(max_tokens=8)


@pytest.fixture(scope="module")
def rounding(checkpoint: Path) -> Engine:
    return load(checkpoint, device="cpu", vision=True, image_kv="fp8")


@pytest.mark.usefixtures("tokens_read")
@pytest.mark.parametrize("shown", [(RED,), (WIDE, TALL, RED)], ids=len)
def test_images_are_kept_in_8_bits_and_shared(rounding: Engine, engine: Engine, shown: tuple[object, ...]) -> None:
    scheduler = Scheduler(rounding.model, memory_of(rounding, 3))
    asked = [Asked(rounding, Conversation.ask(f"Question {n}?", shown), ASK) for n in range(3)]  # type: ignore[arg-type]
    for request in asked:
        scheduler.add(request)
    advance_until(scheduler, asked)
    seen = [request.caches.seen for request in asked if request.caches]
    assert len(seen) == 3
    assert all(isinstance(layers, Float8KV) and layers is seen[0] for layers in seen)
    largest = memory_of(rounding, 1).image_bytes
    kept = scheduler.admission.images.nbytes / (len(shown) + (len(shown) > 1) * len(shown))
    assert kept < 1.1 * largest < memory_of(engine, 1).image_bytes / 3
    advance_until(scheduler, idle=True)
    assert all(request.stats.completion_tokens == len(request.tokens) for request in asked)


def test_an_answer_does_not_depend_on_the_others(rounding: Engine) -> None:
    conversations = [Conversation.ask("What?", shown) for shown in ((RED,), (WIDE, RED), (), (TALL,), (RED,))]
    requests = [BatchRequest(n, rounding.processor(each), sampling=ASK) for n, each in enumerate(conversations)]
    alone = {key: answer for each in requests for key, answer in by_key(run_batch(rounding.model, [each])).items()}
    for slots in (2, 5):
        assert by_key(run_batch(rounding.model, requests, slots=slots)) == alone


def test_more_conversations_about_images_fit(rounding: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rounded = memory_of(engine, 2), memory_of(rounding, 2)
    assert rounded.image_bytes * engine.dtype.itemsize == whole.image_bytes
    assert rounded.position_bytes == whole.position_bytes
    working = capacity.working_bytes(engine.config, engine.dtype.itemsize, engine.model.prefill_chunk)
    monkeypatch.setattr(capacity, "image_cache_bytes", lambda _: 0)
    monkeypatch.setattr(capacity, "free_bytes", lambda _: HEADROOM + working + 30 * whole.image_bytes)
    assert automatic_slots(rounding.model, 8, 1, 8) > automatic_slots(engine.model, 8, 1, 8)


def test_a_session_keeps_them_as_they_are(rounding: Engine, engine: Engine) -> None:
    conversation = Conversation.ask("What is this?", (RED,))
    assert list(map(type, rounding.stream(conversation, ASK))) == list(map(type, engine.stream(conversation, ASK)))
    session = rounding.session()
    list(session.stream(conversation, ASK))
    assert not isinstance(session.images.get(RED.digest), Float8KV)


def test_another_format_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="Unknown format of image keys and values 'fp4'"):
        load(checkpoint, device="cpu", image_kv="fp4")
