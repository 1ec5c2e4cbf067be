"""In refilled slots, every answer is the one that its request gets alone, and replies come as answers end."""

from collections.abc import Generator, Iterator
from dataclasses import replace

import pytest
from torch import Tensor

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import ContextLengthError, ImageError, MllamaError, UsageError
from mllama_cli.core.events import Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.request import BatchRequest
from mllama_cli.engine.batch.run import run_batch
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.vision import VisionEncoder
from mllama_cli.model.image_kv import LayerKV
from tests.checkpoints import make_checkpoint, text_only_config
from tests.engine.batch.asking import RED, alone, by_key, requests_for


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 20])
def test_answers_are_those_given_one_by_one(engine: Engine, slots: int) -> None:
    requests = requests_for(engine)
    expected = {request.key: alone(engine, request) for request in requests}
    assert len(set(expected.values())) > 10, "equal answers would prove little"
    assert by_key(run_batch(engine.model, requests, slots=slots)) == expected


def test_sampled_rows_use_their_own_generators(engine: Engine) -> None:
    requests = [
        replace(
            request, sampling=Sampling(max_tokens=12, temperature=0.8 * (seed % 3), seed=seed, top_k=20 * (seed % 2))
        )
        for seed, request in enumerate(requests_for(engine))
    ]
    requests[4] = replace(requests[4], sampling=Sampling(max_tokens=12, repetition_penalty=1.3))
    others = {"frequency_penalty": 1.0, "presence_penalty": -0.5, "logit_bias": {7: 3.0}}
    requests[7] = replace(requests[7], sampling=Sampling(max_tokens=12, temperature=1.1, seed=3, **others))  # type: ignore[arg-type]
    requests[9] = replace(requests[9], sampling=Sampling(max_tokens=12, **others))  # type: ignore[arg-type]
    assert by_key(run_batch(engine.model, requests, slots=4)) == {r.key: alone(engine, r) for r in requests}


def test_log_probabilities_come_where_they_are_asked_for(engine: Engine) -> None:
    asking = Sampling(max_tokens=8, temperature=1.0, seed=2, logprobs=2)
    requests = [replace(r, sampling=asking if r.key == 3 else Sampling(max_tokens=8)) for r in requests_for(engine)[:5]]
    expected = [e for e in engine.session().stream_inputs(requests[3].inputs, asking) if isinstance(e, Token)]
    assert all(token.logprob is not None and len(token.top_logprobs) == 2 for token in expected)
    for reply in run_batch(engine.model, requests, slots=3):
        if reply.key != 3:
            assert reply.logprobs == ()
            continue
        assert [token.id for token in reply.logprobs] == list(reply.ids)
        for ours, alone_ in zip(reply.logprobs, expected, strict=False):
            assert ours.logprob == pytest.approx(alone_.logprob, abs=1e-4)
            assert [id_ for id_, _ in ours.top_logprobs] == [id_ for id_, _ in alone_.top_logprobs]


def test_a_free_slot_is_refilled_at_once_and_requests_are_pulled_when_needed(engine: Engine) -> None:
    inputs = engine.processor(Conversation.ask("Go on"))
    pulled: list[int] = []

    def source() -> Iterator[BatchRequest]:
        for key, most in enumerate((40, 2, 2, 2, 2, 2)):
            pulled.append(key)
            yield BatchRequest(key, inputs, sampling=Sampling(max_tokens=most))

    order = []
    for reply in run_batch(engine.model, source(), slots=2):
        order.append(reply.key)
        assert len(pulled) <= len(order) + 2
    assert order == [1, 2, 3, 4, 5, 0], "the long answer must not delay others"


def test_others_continue_while_the_next_request_is_not_ready(engine: Engine) -> None:
    first, second = requests_for(engine)[:2]
    replied: list[object] = []

    def source() -> Iterator[BatchRequest | None]:
        yield None
        yield first
        while not replied:
            yield None
        yield second

    for reply in run_batch(engine.model, source(), slots=2):
        replied.append(reply.key)
    assert replied == [first.key, second.key]


def test_a_request_that_cannot_be_answered_is_its_own_reply(engine: Engine) -> None:
    good = requests_for(engine)[:4]
    limit = engine.config.text_config.max_position_embeddings
    short = engine.processor(Conversation.ask("x"))
    long = BatchRequest("long", replace(short, ids=(*short.ids, *short.ids[-1:] * limit)))
    damaged = BatchRequest("damaged", engine.processor(Conversation.ask("?", (ImagePart(b"no picture", "bad.jpg"),))))
    mixed = [good[0], long, good[1], damaged, good[2], good[3]]
    replies = {reply.key: reply for reply in run_batch(engine.model, mixed, slots=3)}
    assert isinstance(replies["long"].error, ContextLengthError)
    assert str(limit) in replies["long"].error.message
    assert isinstance(replies["damaged"].error, ImageError)
    assert "bad.jpg" in replies["damaged"].error.message
    assert [replies[request.key].ids for request in good] == [alone(engine, request) for request in good]
    assert len(replies) == 6


def test_images_for_a_text_only_model_fail_only_their_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    blind = load(make_checkpoint(tmp_path_factory.mktemp("m") / "blind", text_only_config()), device="cpu")
    seeing = load(make_checkpoint(tmp_path_factory.mktemp("m") / "seeing"), device="cpu")
    text = BatchRequest("text", blind.processor(Conversation.ask("Hello")), sampling=Sampling(max_tokens=4))
    shown = BatchRequest("shown", seeing.processor(Conversation.ask("?", (RED,))))
    replies = {reply.key: reply for reply in run_batch(blind.model, [shown, text], slots=2)}
    assert isinstance(replies["shown"].error, UsageError)
    assert len(replies["text"].ids) == 4


def test_a_row_of_nan_ends_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = load(make_checkpoint(tmp_path_factory.mktemp("m") / "nan", seed=3), device="cpu", vision=True)
    engine.network.language_model.embed_tokens.weight[ord("#")] = float("nan")
    requests = [
        BatchRequest(text, engine.processor(Conversation.ask(text)), sampling=Sampling(max_tokens=5))
        for text in ("fine", "bad #", "fine too")
    ]
    replies = {reply.key: reply for reply in run_batch(engine.model, requests, slots=3)}
    assert isinstance(replies["bad #"].error, MllamaError)
    assert [len(replies[key].ids) for key in ("fine", "fine too")] == [5, 5]


def test_tiles_made_ahead_are_used(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request for request in requests_for(engine) if request.inputs.images]
    expected = {request.key: alone(engine, request) for request in requests}
    ready = [replace(r, tiles=tuple(engine.processor.tiles(image) for image in r.inputs.images)) for r in requests]
    monkeypatch.setattr(engine.processor, "tiles", lambda image: pytest.fail(f"{image} was decoded again"))
    assert by_key(run_batch(engine.model, ready, slots=3)) == expected


def test_equal_images_are_encoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    original = VisionEncoder.steps

    def counting(self: VisionEncoder, pixels: Tensor, ratio: int) -> Generator[int, None, list[LayerKV]]:
        encoded.append(ratio)
        return original(self, pixels, ratio)

    monkeypatch.setattr(VisionEncoder, "steps", counting)
    requests = requests_for(engine)
    by_key(run_batch(engine.model, requests, slots=3))
    assert len(encoded) == len({image.digest for request in requests for image in request.inputs.images})


def test_a_long_common_beginning_is_read_once_and_changes_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "These are the rules of the house. " * 40
    talks = [
        *(Conversation.ask(f"Question {n}?", system=rules) for n in range(3)),
        *(Conversation.ask(f"{rules}{n}", (shown,)) for n, shown in enumerate((RED, RED))),
    ]
    requests = [BatchRequest(k, engine.processor(t), sampling=Sampling(max_tokens=9)) for k, t in enumerate(talks)]
    expected = {request.key: alone(engine, request) for request in requests}
    read: list[int] = []
    model = type(engine.network.language_model)
    run = model.run_steps
    monkeypatch.setattr(model, "run_steps", lambda self, ids, *rest: read.append(ids.numel()) or run(self, ids, *rest))
    assert by_key(run_batch(engine.model, requests, slots=2)) == expected
    total = sum(len(request.inputs.ids) for request in requests)
    assert sum(read) < total / 2 + len(requests) * 2 * 9, "the rules were read again for every question"


def test_closing_stops_and_pulls_no_more(engine: Engine) -> None:
    pulled: list[int] = []

    def source() -> Iterator[BatchRequest]:
        for key, request in enumerate(requests_for(engine)):
            pulled.append(key)
            yield request

    replies = run_batch(engine.model, source(), slots=2)
    next(replies)
    before = len(pulled)
    replies.close()
    assert len(pulled) == before
    assert list(replies) == []


def test_what_has_ended_is_replied_before_an_interrupt_is_raised(engine: Engine) -> None:
    requests = requests_for(engine)

    def source() -> Iterator[BatchRequest]:
        yield requests[0]
        raise KeyboardInterrupt  # as soon as the first answer has freed the slot

    replies = run_batch(engine.model, source(), slots=1)
    first = next(replies)
    assert first.ids == alone(engine, requests[0])
    with pytest.raises(KeyboardInterrupt):
        next(replies)


def test_no_requests_no_replies(engine: Engine) -> None:
    assert list(run_batch(engine.model, [])) == []
