"""A live chat: what stays in the conversation whatever happens to an answer, and what is computed again."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mllama_cli.chat.dialogue import LiveChat
from mllama_cli.core.conversation import ImagePart, Message, TextPart
from mllama_cli.core.errors import ContextLengthError, ImageError, UsageError
from mllama_cli.core.events import EncodingImage, GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from tests.checkpoints import END, EOM, EOT, make_checkpoint, text_only_config

PHOTO = ImagePart((Path(__file__).parents[1] / "data" / "drawing.png").read_bytes(), "some/drawing.png")
OTHER = ImagePart((Path(__file__).parents[1] / "data" / "card.png").read_bytes(), "card.png")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    # A bias against nothing: the answers are noise, so that the length is what ends them.
    folder = make_checkpoint(tmp_path_factory.mktemp("model"), generation={"eos_token_id": [END, EOM, EOT]})
    return load(folder, device="cpu", vision=True)


@pytest.fixture
def chat(engine: Engine) -> LiveChat:
    return LiveChat(engine, Sampling(max_tokens=6))


def ask(chat: LiveChat, text: str) -> list[object]:
    return list(chat.ask(chat.compose(text)))


def roles(chat: LiveChat) -> list[str]:
    return [message.role for message in chat.conversation]


def test_questions_and_answers_join_the_conversation(chat: LiveChat) -> None:
    chat.attach(PHOTO)
    events = ask(chat, "One?")
    said = "".join(event.text for event in events if isinstance(event, Token))
    assert chat.conversation.messages == (
        Message("user", (PHOTO, TextPart("One?"))),
        Message("assistant", (TextPart(said),)),
    )
    assert chat.last_answer == said
    assert chat.attachments == []
    ask(chat, "Two?")
    assert roles(chat) == ["user", "assistant"] * 2
    assert chat.stats is not None
    assert chat.context_used == chat.stats.prompt_tokens + chat.stats.completion_tokens


def test_a_picture_is_encoded_once_and_only_the_new_turn_is_read(chat: LiveChat) -> None:
    chat.attach(PHOTO)
    ask(chat, "A long question, so that there is much to keep: " + "x" * 300)
    events = ask(chat, "And?")
    assert not any(isinstance(event, EncodingImage) for event in events)
    stats = events[-1]
    assert isinstance(stats, GenerationStats)
    assert stats.cached_tokens > 300


def test_an_answer_that_is_stopped_stays_as_far_as_it_was_said(chat: LiveChat) -> None:
    chat.set_sampling(max_tokens=500)
    pieces = []
    with closing(_asked(chat, "Go on")) as events:
        for event in events:
            if isinstance(event, Token):
                pieces.append(event.text)
                if len(pieces) == 3:
                    break
    assert roles(chat) == ["user", "assistant"]
    assert chat.last_answer == "".join(pieces)
    ask(chat, "And now?")
    assert roles(chat) == ["user", "assistant"] * 2


def test_an_interruption_before_the_first_word_takes_nothing_away(chat: LiveChat) -> None:
    chat.attach(PHOTO)
    chat.attached_text.append("notes")
    with closing(_asked(chat, "What?")) as events:
        next(events)
    assert roles(chat) == []
    assert [a.part for a in chat.attachments] == [PHOTO]
    assert chat.attached_text == ["notes"]


def test_a_question_that_is_too_long_changes_nothing(chat: LiveChat) -> None:
    ask(chat, "One?")
    before = chat.conversation
    chat.attach(PHOTO)
    with pytest.raises(ContextLengthError, match="more than this model can"):
        ask(chat, "x" * 3000)
    assert chat.conversation == before
    assert len(chat.attachments) == 1


def test_regenerating_asks_the_same_again_and_replaces_the_answer(chat: LiveChat) -> None:
    chat.attach(PHOTO)
    ask(chat, "One?")
    greedy = chat.last_answer
    chat.attach(OTHER)
    events = list(chat.regenerate())
    assert roles(chat) == ["user", "assistant"]
    assert chat.conversation.messages[0] == Message("user", (PHOTO, TextPart("One?")))
    assert [a.part for a in chat.attachments] == [OTHER], "what waits for the next question still waits"
    stats = events[-1]
    assert isinstance(stats, GenerationStats)
    assert stats.cached_tokens >= stats.prompt_tokens - 1, "the prompt is not read again"
    answers = {greedy}
    for _ in range(5):
        list(chat.regenerate())
        answers.add(chat.last_answer)
    assert len(answers) > 1, "greedy decoding would say the same again"


def test_a_regeneration_that_says_nothing_brings_the_old_answer_back(chat: LiveChat) -> None:
    ask(chat, "One?")
    before = chat.conversation
    with closing(_of(chat.regenerate())) as events:
        next(events)
    assert chat.conversation == before


def test_taking_back_and_dropping_the_oldest(chat: LiveChat) -> None:
    with pytest.raises(UsageError, match="nothing"):
        chat.take_back()
    for text in ("One?", "Two?", "Three?"):
        ask(chat, text)
    assert chat.take_back().text == "Three?"
    assert roles(chat) == ["user", "assistant"] * 2
    assert chat.drop_oldest() == 2
    assert [m.text for m in chat.conversation if m.role == "user"] == ["Two?"]
    assert chat.drop_oldest() == 2
    assert chat.conversation.messages == ()


def test_a_system_message_is_sent_but_is_no_turn(chat: LiveChat) -> None:
    ask(chat, "One?")
    assert chat.stats is not None
    without = chat.stats.prompt_tokens
    chat.clear()
    chat.system = "Be brief."
    ask(chat, "One?")
    assert chat.stats.prompt_tokens > without + len("Be brief.")
    assert roles(chat) == ["user", "assistant"]


def test_attached_text_comes_before_what_is_typed(chat: LiveChat) -> None:
    chat.attached_text.append("notes.txt:\nsome notes")
    assert chat.compose("Sum up.").text == "notes.txt:\nsome notes\n\nSum up."
    assert chat.compose("").text == "notes.txt:\nsome notes"


def test_pictures_without_a_question_are_described(chat: LiveChat) -> None:
    chat.attach(PHOTO)
    assert chat.compose(" ").text == "Describe this image."
    chat.attach(OTHER)
    assert chat.compose("").text == "Describe these images."


def test_chips_say_what_the_model_gets(chat: LiveChat) -> None:
    attachment = chat.attach(PHOTO)
    assert attachment.chip == f"drawing.png {attachment.width}x{attachment.height}, 4 tiles"
    with pytest.raises(ImageError):
        chat.attach(ImagePart(b"no picture", "notes.txt"))
    assert len(chat.attachments) == 1


def test_a_text_only_model_takes_no_pictures_and_another_model_goes_on(
    chat: LiveChat, tmp_path: Path, engine: Engine
) -> None:
    ask(chat, "One?")
    chat.switch(load(make_checkpoint(tmp_path / "text", text_only_config()), device="cpu"))
    with pytest.raises(UsageError, match="text-only"):
        chat.attach(PHOTO)
    ask(chat, "Two?")
    assert roles(chat) == ["user", "assistant"] * 2
    chat.switch(engine)
    ask(chat, "Three?")
    assert roles(chat) == ["user", "assistant"] * 3


def _asked(chat: LiveChat, text: str) -> Iterator[object]:
    return _of(chat.ask(chat.compose(text)))


def _of(events: Iterator[object]) -> Iterator[object]:
    """A generator that closes the one inside when it is closed, as ``for`` in a function does."""
    yield from events
