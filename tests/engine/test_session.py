"""A live conversation: what is cached, what is encoded, and that neither changes an answer."""

from collections.abc import Generator, Iterator
from dataclasses import replace

import pytest
import torch

from mllama_cli.core.conversation import Conversation, ImagePart, Message, TextPart
from mllama_cli.core.errors import ContextLengthError, MemoryShortageError, UsageError
from mllama_cli.core.events import EncodingImage, Event, GenerationStats, Notice, Prefilled, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.core.tool_calls import ToolCall
from mllama_cli.engine.device import make_current
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.forward import DecodeInput, Decoder
from mllama_cli.engine.vision import ImageCache
from mllama_cli.model.cache import CrossKVCache, KVCache
from mllama_cli.model.visibility import image_spans
from mllama_cli.processing.processor import ModelInputs
from tests.checkpoints import VOCABULARY
from tests.engine.conftest import picture
from tests.peers import peer_greedy, transformers_model

GREEDY = Sampling(max_tokens=24)


def text_of(events: Iterator[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def ids_of(events: Iterator[Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token)]


def stats_of(events: Iterator[Event]) -> GenerationStats:
    *_, last = events
    assert isinstance(last, GenerationStats)
    return last


@pytest.mark.parametrize("images", [(), (picture(),), (picture("red"), picture("blue", (90, 300)))])
def test_an_answer_equals_transformers_token_for_token(engine: Engine, images: tuple[ImagePart, ...]) -> None:
    import json

    conversation = Conversation.ask("What is this?", images)
    inputs = engine.processor(conversation)
    tiles = [engine.processor.tiles(image) for image in inputs.images]
    peer = transformers_model(json.loads((engine.path / "config.json").read_text()), engine.network)
    expected = peer_greedy(
        peer, inputs.ids, [(t.pixel_values, t.aspect_ratio_id) for t in tiles], VOCABULARY, 24, sorted(engine.model.eos)
    )
    assert ids_of(engine.stream(conversation, GREEDY)) == [token for token in expected if token not in engine.model.eos]


def test_a_later_turn_feeds_only_what_is_new_and_answers_as_from_scratch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    original = ImageCache.encode_steps
    monkeypatch.setattr(
        ImageCache, "encode_steps", lambda self, image: encoded.append(image.name) or original(self, image)
    )
    session = engine.session()
    conversation = Conversation.ask("What is this?", (picture("red"),))
    answer = text_of(session.stream(conversation, GREEDY))
    longer = conversation.with_assistant(answer).with_user("And now?", (picture("blue", (300, 60)),))
    events = list(session.stream(longer, GREEDY))
    stats = stats_of(iter(events))
    first_turn = len(engine.processor(conversation).ids)
    assert stats.cached_tokens >= first_turn
    assert encoded == ["red.png", "blue.png"]
    assert ids_of(iter(events)) == ids_of(engine.stream(longer, GREEDY))
    assert sum(isinstance(event, Notice) for event in events) == 1
    again = longer.with_assistant("x").with_user("More?")
    assert not any(isinstance(event, Notice) for event in session.stream(again, GREEDY)), "said once is enough"


def test_another_image_at_the_same_position_is_not_mistaken_for_the_old_one(engine: Engine) -> None:
    session = engine.session()
    red, blue = (Conversation.ask("What is this?", (picture(c),)) for c in ("red", "blue"))
    text_of(session.stream(red, GREEDY))
    assert ids_of(session.stream(blue, GREEDY)) == ids_of(engine.stream(blue, GREEDY))


def test_going_back_and_asking_differently_reuses_the_common_part(engine: Engine) -> None:
    session = engine.session()
    start = Conversation.ask("A long enough beginning of a conversation.", (picture(),))
    text_of(session.stream(start.with_assistant("Yes.").with_user("First?"), GREEDY))
    other = start.with_assistant("Yes.").with_user("Second?")
    events = list(session.stream(other, GREEDY))
    assert stats_of(iter(events)).cached_tokens > len(engine.processor(start).ids)
    assert not any(isinstance(event, EncodingImage) for event in events)
    assert ids_of(iter(events)) == ids_of(engine.stream(other, GREEDY))


def test_a_cpu_reports_progress_with_an_image(engine: Engine) -> None:
    events = engine.stream(Conversation.ask("What are these?", (picture("red"), picture("blue"))), GREEDY)
    reported = [event for event in events if isinstance(event, EncodingImage)]
    layers = engine.model.vision.layers
    assert layers == 6
    assert reported == [EncodingImage(index, 2, layer, layers) for index in (1, 2) for layer in range(layers + 1)]


def test_an_image_abandoned_halfway_is_encoded_again(engine: Engine) -> None:
    session = engine.session()
    conversation = Conversation.ask("What is this?", (picture(),))
    stream = session.stream(conversation, GREEDY)
    for event in stream:
        if isinstance(event, EncodingImage) and event.layer == 3:
            break
    stream.close()
    assert picture().digest not in session.images
    assert ids_of(session.stream(conversation, GREEDY)) == ids_of(engine.stream(conversation, GREEDY))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_an_abandoned_reply_leaves_the_session_usable(engine: Engine, tokens: int) -> None:
    session = engine.session()
    conversation = Conversation.ask("What is this?", (picture(),))
    reply = session.stream(conversation, GREEDY)
    said = ""
    for event in reply:
        if isinstance(event, Token):
            if tokens == 0:
                break
            said += event.text
            tokens -= 1
    reply.close()
    longer = conversation.with_assistant(said).with_user("Go on.")
    assert ids_of(session.stream(longer, GREEDY)) == ids_of(engine.stream(longer, GREEDY))


def test_a_text_only_chat_loads_neither_vision_tower_nor_cross_attention(checkpoint: str) -> None:
    lazy = load(checkpoint, device="cpu")
    assert text_of(lazy.stream(Conversation.ask("Hello"), GREEDY))
    network = lazy.network
    unloaded = {name for name, p in network.named_parameters() if p.is_meta}
    assert any("vision_model" in name for name in unloaded)
    assert any("cross_attn" in name for name in unloaded)
    assert any("multi_modal_projector" in name for name in unloaded)
    with_image = Conversation.ask("What is this?", (picture(),))
    eager = load(checkpoint, device="cpu", vision=True)
    assert ids_of(lazy.stream(with_image, GREEDY)) == ids_of(eager.stream(with_image, GREEDY))
    assert not any(p.is_meta for p in network.parameters())


def test_a_long_prompt_in_chunks_equals_one_in_one_piece(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = (
        Conversation.ask("word " * 60, (picture(),)).with_assistant("ok").with_user("x " * 30, (picture("blue"),))
    )
    fed: list[int] = []
    model = type(engine.network.language_model)
    run = model.run_steps
    monkeypatch.setattr(model, "run_steps", lambda self, ids, *rest: fed.append(ids.shape[1]) or run(self, ids, *rest))
    whole = ids_of(engine.stream(conversation, GREEDY))
    length = len(engine.processor(conversation).ids)
    assert [width for width in fed if width > 1] == [length]
    fed.clear()
    monkeypatch.setattr(engine.model, "prefill_chunk", 7)
    assert ids_of(engine.stream(conversation, GREEDY)) == whole
    full, rest = divmod(length, 7)
    assert fed[: full + bool(rest)] == [7] * full + [rest] * bool(rest)


def test_statistics_count_what_happened(engine: Engine) -> None:
    conversation = Conversation.ask("What is this?", (picture(),))
    events = list(engine.stream(conversation, GREEDY))
    stats = stats_of(iter(events))
    assert stats.prompt_tokens == len(engine.processor(conversation).ids)
    assert stats.completion_tokens == len(ids_of(iter(events))) == 24
    assert stats.images == 1
    assert stats.finish_reason == "length"
    assert stats.time_to_first_token > 0
    assert stats.tokens_per_second > 0


def test_a_conversation_beyond_the_context_is_refused_by_how_much(engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match=r"more than this model can read .* 2048"):
        list(engine.stream(Conversation.ask("x" * 3000), GREEDY))


def test_an_answer_ends_where_the_context_does(engine: Engine) -> None:
    room = 2048 - len(engine.processor(Conversation.ask("")).ids)
    stats = stats_of(engine.stream(Conversation.ask("x" * (room - 3)), Sampling(max_tokens=100)))
    assert (stats.finish_reason, stats.completion_tokens) == ("length", 3)


def test_an_answer_goes_on_with_its_prefill(engine: Engine) -> None:
    question = Conversation.ask("What is this?", (picture(),))
    whole = text_of(engine.stream(question, GREEDY))
    *events, stats = engine.stream(question.with_prefill("A photo of "), replace(GREEDY, stop=("photo",)))
    assert events[-stats.completion_tokens - 1] == Prefilled("A photo of")
    rest = text_of(iter(events))
    assert rest
    assert rest != whole
    # Its tokens are the prompt's, so answering goes on as if they had been generated.
    inputs = engine.processor(question)
    longer = replace(inputs, ids=(*inputs.ids, *engine.processor.tokenizer.encode("A photo of")))
    assert text_of(engine.session().stream_inputs(longer, GREEDY)) == rest
    assert stats.prompt_tokens == len(longer.ids)
    [reply] = engine.answer_batch([question.with_prefill("A photo of")], GREEDY)
    assert reply.text == "A photo of" + rest
    talk = question.with_prefill("A photo of ").with_assistant(reply.text)
    assert talk == question.with_assistant(reply.text)


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation(),
        Conversation((Message("system", (TextPart("Be brief."),)),)),
        Conversation().with_assistant("Hello"),
        Conversation.ask("Hi").with_assistant("  "),
        Conversation((*Conversation.ask("Hi"), Message("assistant", (), (ToolCall("f"),)))),
    ],
)
def test_what_has_no_answer_is_refused(engine: Engine, conversation: Conversation) -> None:
    with pytest.raises(UsageError, match="to answer"):
        list(engine.stream(conversation, GREEDY))


def test_repetition_penalty_works_with_an_image_token_in_the_context(engine: Engine) -> None:
    conversation = Conversation.ask("What is this?", (picture(),))
    ids = ids_of(engine.stream(conversation, Sampling(max_tokens=24, repetition_penalty=5.0)))
    assert len(set(ids)) > len(set(ids_of(engine.stream(conversation, GREEDY))))


def test_seeded_sampling_repeats_and_other_seeds_differ(engine: Engine) -> None:
    conversation = Conversation.ask("Hello")
    one, two, three = (
        ids_of(engine.stream(conversation, Sampling(temperature=1.5, seed=s, max_tokens=16))) for s in (1, 1, 2)
    )
    assert one == two
    assert one != three


def test_bfloat16_answers(checkpoint: str) -> None:
    half = load(checkpoint, device="cpu", dtype="bfloat16", vision=True)
    assert half.network.lm_head.weight.dtype == torch.bfloat16
    assert len(ids_of(half.stream(Conversation.ask("What is this?", (picture(),)), GREEDY))) == 24


def test_text_only_checkpoint_refuses_images(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.checkpoints import make_checkpoint, text_only_config

    folder = make_checkpoint(tmp_path_factory.mktemp("text") / "only", text_only_config())
    engine = load(folder, device="cpu")
    assert text_of(engine.stream(Conversation.ask("Hello"), GREEDY))
    with pytest.raises(UsageError, match="text-only"):
        list(engine.stream(Conversation.ask("What?", (picture(),)), GREEDY))


def test_running_out_of_memory_is_one_error_and_the_session_stays_usable(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Conversation.ask("What is this?", (picture(),))
    session = engine.session()
    answer = text_of(session.stream(first, GREEDY))
    second = first.with_assistant(answer).with_user("And now? " * 20)
    expected = ids_of(engine.stream(second, GREEDY))

    def no_room(cache: KVCache, length: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "reserve", no_room)
        with pytest.raises(MemoryShortageError, match="not enough memory for a conversation of"):
            list(session.stream(second, GREEDY))
    session.cache.lengths = [0]  # as growing leaves it where there was room for nothing
    events = list(session.stream(second, GREEDY))
    assert ids_of(iter(events)) == expected
    assert stats_of(iter(events)).cached_tokens == 0


def test_memory_that_runs_out_in_an_answer_leaves_what_was_said(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Decoder.tokens

    def short(self: Decoder, start: DecodeInput) -> Generator[int]:
        tokens = decode(self, start)
        yield next(tokens)
        yield next(tokens)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")

    conversation, session = Conversation.ask("Hello"), engine.session()
    whole = ids_of(engine.stream(conversation, GREEDY))
    said: list[Event] = []

    def hear(events: Iterator[Event]) -> None:
        for event in events:
            said.append(event)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "tokens", short)
        with pytest.raises(MemoryShortageError):
            hear(session.stream(conversation, GREEDY))
    assert ids_of(iter(said)) == whole[:2]
    assert ids_of(session.stream(conversation, GREEDY)) == whole


def test_errors_that_are_not_about_memory_stay_what_they_are(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Decoder, start: DecodeInput) -> Generator[int]:
        raise RuntimeError("a bug")
        yield

    monkeypatch.setattr(Decoder, "tokens", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(engine.stream(Conversation.ask("Hello"), GREEDY))


def test_the_chosen_gpu_is_the_one_that_kernels_go_to(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        make_current(torch.device(name))
    assert chosen == [torch.device("cuda:1")]


def test_probabilities_of_choices_are_those_of_their_tokens_and_the_end(engine: Engine) -> None:
    inputs, texts = engine.processor(Conversation.ask("What?", (picture(),))), ["ab", "a", "xyz"]
    session = engine.session()
    found = session.probabilities_after(inputs, texts)
    expected = []
    for text in texts:  # token by token, on caches of their own
        ids, score = list(inputs.ids), 0.0
        for token in engine.processor.tokenizer.encode(text):
            score += logits_after(engine, inputs, ids)[token].item()
            ids.append(token)
        score += logits_after(engine, inputs, ids)[sorted(engine.model.eos)].logsumexp(0).item()
        expected.append(score)
    chances = torch.tensor(expected, dtype=torch.float64).softmax(0).tolist()
    assert list(found.values()) == pytest.approx(chances, rel=1e-3)
    assert sum(found.values()) == pytest.approx(1)
    assert session.probabilities_after(inputs, texts) == pytest.approx(found, rel=1e-4), "the caches serve again"


def logits_after(engine: Engine, inputs: ModelInputs, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities of the token after ``ids``, whose images are those of a prompt."""
    model = engine.model
    spans = image_spans(ids, model.config.image_token_index)
    images = ImageCache(model.vision)
    for image in inputs.images:
        for _ in images.encode_steps(image):
            pass
    cross = CrossKVCache.from_images([[images.get(image.digest) for image in inputs.images]])
    cache = KVCache(model.config.text_config, dtype=model.dtype, device=model.device)
    *_, (_, logits) = model.decoder.prefill(ids, cache, cross, spans)
    return logits[0].double().log_softmax(-1)
