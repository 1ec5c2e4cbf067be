"""Keys and values of a common beginning are reused, and never change an answer."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.batch.prefix_cache import MIN_SHARED_PREFIX
from mllama_cli.engine.batch.scheduler import Scheduler
from mllama_cli.engine.engine import Engine
from mllama_cli.model.text import MllamaTextModel
from tests.engine.batch.asking import RED, TALL, WIDE, Asked, memory_of, run

pytestmark = pytest.mark.usefixtures("tokens_read")

ASK = Sampling(max_tokens=6)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with the number of ids of each pass that reads prompts."""
    read: list[int] = []
    forward = MllamaTextModel.steps

    def counted(self: MllamaTextModel, ids: Tensor, *rest: object) -> Tensor:
        read.append(ids.numel())
        return forward(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(MllamaTextModel, "steps", counted)
    return read


@pytest.mark.parametrize("shown", [(), (RED,), (RED, WIDE)], ids=len)
def test_a_next_turn_reads_only_its_new_tokens(
    engine: Engine, fed: list[int], shown: tuple[ImagePart, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.model, "eos", frozenset())
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    first = Asked(engine, Conversation.ask("Tell me a story about this.", shown), ASK)
    run(scheduler, first)
    assert sum(fed) == len(first.ids)
    again = Asked(engine, Conversation.ask("Tell me a story about this.", shown), ASK)
    # The next turn begins with the very ids of the first and of its answer.
    answer, ending = [token.id for token in first.tokens], again.ids[-20:]
    follow_up = Asked(engine, "", ASK)
    follow_up.inputs = type(again.inputs)((*again.ids, *answer, *ending), again.inputs.images)
    fed.clear()
    run(scheduler, follow_up)
    # The last token of an answer is never fed: nothing comes after it.
    assert sum(fed) == len(ending) + 1
    assert follow_up.stats.cached_tokens == len(again.ids) + len(answer) - 1
    assert scheduler.admission.cached_tokens == follow_up.stats.cached_tokens
    assert follow_up.answers_as_alone(engine)


def test_the_same_prompt_again_reads_one_token(engine: Engine, fed: list[int]) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    asked = [Asked(engine, "Tell me a story.", ASK) for _ in range(3)]
    for request in asked:
        run(scheduler, request)
    assert fed == [len(asked[0].ids), 1, 1]
    assert all(request.answers_as_alone(engine) for request in asked)


def test_a_prompt_shares_with_one_that_is_being_answered(engine: Engine, fed: list[int]) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 2))
    first, second = (Asked(engine, f"{'Some rules. ' * 9}{name}", Sampling(max_tokens=20)) for name in "AB")
    scheduler.add(first)
    scheduler.advance()
    assert scheduler.active == [first]
    run(scheduler, second)
    assert second.stats.cached_tokens == next(n for n, id_ in enumerate(first.ids) if id_ != second.ids[n])
    assert sum(fed) == len(first.ids) + len(second.ids) - second.stats.cached_tokens
    assert first.answers_as_alone(engine)
    assert second.answers_as_alone(engine)


@pytest.mark.parametrize("other", [(TALL,), (RED, TALL), ()], ids=["changed", "one more", "none"])
def test_another_image_of_the_same_ids_is_not_shared(engine: Engine, other: tuple[ImagePart, ...]) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 1))
    text = "A long question about what can be seen here?"
    first = Asked(engine, Conversation.ask(text, (RED,)), ASK)
    changed = Asked(engine, Conversation.ask(text, other), ASK)
    run(scheduler, first)
    run(scheduler, changed)
    assert changed.stats.cached_tokens == 0
    assert changed.answers_as_alone(engine)
    assert changed.tokens != first.tokens, "equal answers would prove nothing"


def test_a_changed_second_image_shares_what_comes_before_it(engine: Engine) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 1))

    def talk(second: ImagePart) -> Conversation:
        return (
            Conversation.ask("What is in this first one?", (RED,)).with_assistant("Red.").with_user("Now?", (second,))
        )

    first, changed = Asked(engine, talk(WIDE), ASK), Asked(engine, talk(TALL), ASK)
    assert first.ids == changed.ids
    run(scheduler, first)
    run(scheduler, changed)
    image_token = engine.config.image_token_index
    assert changed.stats.cached_tokens == len(first.ids) - 1 - first.ids[::-1].index(image_token)
    assert changed.stats.cached_tokens > MIN_SHARED_PREFIX
    assert changed.answers_as_alone(engine)


def test_the_number_of_kept_texts_is_limited_and_the_oldest_goes_first(engine: Engine) -> None:
    scheduler = Scheduler(engine.model, memory_of(engine, 3))
    texts = [f"{number} is where this text begins" for number in range(6)]
    for text in texts:
        run(scheduler, Asked(engine, text, ASK))
    assert len(list(scheduler.admission.prefixes)) == 3
    hits = [Asked(engine, text, ASK) for text in reversed(texts)]
    for request in hits:
        run(scheduler, request)
    assert [request.stats.cached_tokens > 0 for request in hits] == [True] * 3 + [False] * 3


OPENINGS = ("You are a helpful painter who answers briefly. ", "You are a helpful painter who rhymes. ", "")
TURNS = st.lists(
    st.tuples(
        st.sampled_from(["Why?", "What do you see in this one?", "Go on, please", ""]),
        st.sampled_from([(), (), (RED,), (WIDE,), (RED, WIDE)]),
    ),
    min_size=1,
    max_size=3,
)
TALKS = st.lists(st.tuples(st.sampled_from(OPENINGS), TURNS), min_size=1, max_size=6)


def conversation(opening: str, turns: Sequence[tuple[str, tuple[ImagePart, ...]]]) -> Conversation:
    (text, images), *others = turns
    talk = Conversation.ask(opening + text, images)
    for text, images in others:
        talk = talk.with_assistant("Well, I think so.").with_user(text, images)
    return talk


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TALKS, st.integers(1, 4), st.sampled_from([1, 2, 8]), st.booleans(), st.data())
def test_reuse_never_changes_an_answer(
    engine: Engine,
    talks: list[tuple[str, list[tuple[str, tuple[ImagePart, ...]]]]],
    slots: int,
    texts: int,
    streams: bool,
    data: st.DataObject,
) -> None:
    one = memory_of(engine, slots)
    scheduler = Scheduler(engine.model, memory_of(engine, slots, texts * (one.text_bytes(500) + 6 * one.image_bytes)))
    asked = [
        Asked(engine, conversation(*talk), Sampling(max_tokens=4, temperature=number % 2, seed=number), streams=streams)
        for number, talk in enumerate(talks)
    ]
    for request in asked:
        scheduler.add(request)
        for _ in range(data.draw(st.integers(0, 12), label="pieces of work before the next")):
            scheduler.advance()
    run(scheduler)
    for request in asked:
        assert request.answers_as_alone(engine)
