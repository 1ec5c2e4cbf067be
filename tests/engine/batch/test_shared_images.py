"""Several questions about one image: it is encoded once, and there is one copy of its keys and values."""

import pytest

from mllama_cli.core.conversation import Conversation
from mllama_cli.core.events import EncodingImage, ReadingPrompt
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.engine import Engine
from mllama_cli.engine.vision import encoded_bytes
from tests.engine.batch.asking import RED, TALL, WIDE, Asked, advance_until, memory_of, run

pytestmark = pytest.mark.usefixtures("tokens_read")

ASK = Sampling(max_tokens=30)


@pytest.mark.parametrize("shown", [(RED,), (RED, WIDE), (WIDE, TALL, RED)], ids=len)
def test_questions_about_the_same_images_share_them(engine: Engine, shown: tuple[object, ...]) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 4))
    asked = [Asked(engine, Conversation.ask(f"Question {n}?", shown), ASK) for n in range(4)]  # type: ignore[arg-type]
    for request in asked:
        scheduler.add(request)
    advance_until(scheduler, asked)
    assert len(scheduler.active) == 4
    first = asked[0].caches
    assert first is not None
    assert first.seen
    for request in asked:
        assert request.caches is not None
        assert request.caches.seen is not None
        pairs = zip(request.caches.seen, first.seen, strict=True)
        assert all(ours[kind].data_ptr() == theirs[kind].data_ptr() for ours, theirs in pairs for kind in (0, 1))
    advance_until(scheduler, idle=True)
    assert scheduler.admission.images_encoded == len(shown)
    assert scheduler.admission.image_hits == 3 * len(shown)
    assert all(request.answers_as_alone(engine) for request in asked)
    assert sum(isinstance(event, EncodingImage) and event.layer == 0 for event in asked[0].events) == len(shown)
    assert not any(isinstance(event, EncodingImage) for request in asked[1:] for event in request.events)


def test_images_that_share_nothing_keep_their_own(engine: Engine) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 5))
    groups = [(RED,), (WIDE,), (RED, WIDE), (WIDE, RED), ()]
    asked = [Asked(engine, Conversation.ask("What?", shown), ASK) for shown in groups]
    for request in asked:
        scheduler.add(request)
    advance_until(scheduler, asked)
    seen = [request.caches.seen for request in asked if request.caches]
    assert len({layers[0][0].data_ptr() for layers in seen if layers}) == 4
    assert seen.count(None) == 1
    advance_until(scheduler, idle=True)
    assert scheduler.admission.images_encoded == 2
    assert all(request.answers_as_alone(engine) for request in asked)


def test_an_image_asked_about_later_is_still_there_unless_memory_was_needed(engine: Engine) -> None:
    first, second, third = (Asked(engine, Conversation.ask(f"{n}?", (RED,)), ASK) for n in range(3))
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    run(scheduler, first)
    run(scheduler, second)
    assert (scheduler.admission.images_encoded, scheduler.admission.image_hits) == (1, 1)
    layers = scheduler.admission.images.get(RED.digest)
    assert scheduler.admission.images.nbytes == encoded_bytes(layers)
    scheduler.admission.images.evict()
    run(scheduler, third)
    assert scheduler.admission.images_encoded == 2
    assert all(request.answers_as_alone(engine) for request in (first, second, third))


def test_events_of_an_image_come_before_those_of_the_prompt(engine: Engine) -> None:
    asked = Asked(engine, Conversation.ask("What?", (RED, WIDE)), ASK)
    run(Scheduler(engine.model, memory_of(engine, 1)), asked)
    layers = engine.model.vision.layers
    encoding = [event for event in asked.events if isinstance(event, EncodingImage)]
    assert encoding == [EncodingImage(index, 2, layer, layers) for index in (1, 2) for layer in range(layers + 1)]
    reading = [event for event in asked.events if isinstance(event, ReadingPrompt)]
    assert reading == [ReadingPrompt(0, len(asked.ids)), ReadingPrompt(len(asked.ids), len(asked.ids))]
    assert asked.events == [*encoding, *reading, *asked.tokens, asked.stats]
