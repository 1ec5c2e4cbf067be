"""A dialogue: what stays in the conversation whatever happens to an answer, and what is computed again."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from mllama_cli.chat.dialogue import AttachedText, Dialogue, chip
from mllama_cli.core.conversation import ImagePart, Message, TextPart
from mllama_cli.core.errors import ContextLengthError, ImageError, UsageError
from mllama_cli.core.events import EncodingImage, GenerationStats, Token
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from tests.checkpoints import END, EOM, EOT, make_checkpoint, text_only_config

PHOTO = ImagePart((Path(__file__).parents[1] / "data" / "drawing.png").read_bytes(), "some/drawing.png")
OTHER = ImagePart((Path(__file__).parents[1] / "data" / "card.png").read_bytes(), "card.png")

NOTES = AttachedText("/a/notes.txt", "notes.txt", "some notes")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    # A bias against nothing: the answers are noise, so that the length is what ends them.
    folder = make_checkpoint(tmp_path_factory.mktemp("model"), generation={"eos_token_id": [END, EOM, EOT]})
    return load(folder, device="cpu", vision=True)


@pytest.fixture
def dialogue(engine: Engine) -> Dialogue:
    return Dialogue(engine, Sampling(max_tokens=6))


def ask(dialogue: Dialogue, text: str) -> list[object]:
    return list(dialogue.ask(dialogue.compose(text)))


def roles(dialogue: Dialogue) -> list[str]:
    return [message.role for message in dialogue.conversation]


def test_questions_and_answers_join_the_conversation(dialogue: Dialogue) -> None:
    dialogue.attach(PHOTO)
    events = ask(dialogue, "One?")
    said = "".join(event.text for event in events if isinstance(event, Token))
    assert dialogue.conversation.messages == (
        Message("user", (PHOTO, TextPart("One?"))),
        Message("assistant", (TextPart(said),)),
    )
    assert dialogue.last_answer == said
    assert dialogue.attachments == []
    ask(dialogue, "Two?")
    assert roles(dialogue) == ["user", "assistant"] * 2
    assert dialogue.stats is not None
    assert dialogue.context_used == dialogue.stats.prompt_tokens + dialogue.stats.completion_tokens


def test_a_picture_is_encoded_once_and_only_the_new_turn_is_read(dialogue: Dialogue) -> None:
    dialogue.attach(PHOTO)
    ask(dialogue, "A long question, so that there is much to keep: " + "x" * 300)
    events = ask(dialogue, "And?")
    assert not any(isinstance(event, EncodingImage) for event in events)
    stats = events[-1]
    assert isinstance(stats, GenerationStats)
    assert stats.cached_tokens > 300


def test_an_answer_that_is_stopped_stays_as_far_as_it_was_said(dialogue: Dialogue) -> None:
    dialogue.set_sampling(max_tokens=500)
    pieces = []
    with closing(_asked(dialogue, "Go on")) as events:
        for event in events:
            if isinstance(event, Token):
                pieces.append(event.text)
                if len(pieces) == 3:
                    break
    assert roles(dialogue) == ["user", "assistant"]
    assert dialogue.last_answer == "".join(pieces)
    ask(dialogue, "And now?")
    assert roles(dialogue) == ["user", "assistant"] * 2


def test_an_interruption_before_the_first_word_takes_nothing_away(dialogue: Dialogue) -> None:
    dialogue.attach(PHOTO)
    dialogue.attach_text(NOTES)
    with closing(_asked(dialogue, "What?")) as events:
        next(events)
    assert roles(dialogue) == []
    assert dialogue.attachments == [PHOTO]
    assert dialogue.attached_text == [NOTES]


def test_a_question_that_is_too_long_changes_nothing(dialogue: Dialogue) -> None:
    ask(dialogue, "One?")
    before = dialogue.conversation
    dialogue.attach(PHOTO)
    with pytest.raises(ContextLengthError, match="more than this model can"):
        ask(dialogue, "x" * 3000)
    assert dialogue.conversation == before
    assert len(dialogue.attachments) == 1


def test_regenerating_asks_the_same_again_and_replaces_the_answer(dialogue: Dialogue) -> None:
    dialogue.attach(PHOTO)
    ask(dialogue, "One?")
    greedy = dialogue.last_answer
    dialogue.attach(OTHER)
    events = list(dialogue.regenerate())
    assert roles(dialogue) == ["user", "assistant"]
    assert dialogue.conversation.messages[0] == Message("user", (PHOTO, TextPart("One?")))
    assert dialogue.attachments == [OTHER], "what waits for the next question still waits"
    stats = events[-1]
    assert isinstance(stats, GenerationStats)
    assert stats.cached_tokens >= stats.prompt_tokens - 1, "the prompt is not read again"
    answers = {greedy}
    for _ in range(5):
        list(dialogue.regenerate())
        answers.add(dialogue.last_answer)
    assert len(answers) > 1, "greedy decoding would say the same again"


def test_a_regeneration_that_says_nothing_brings_the_old_answer_back(dialogue: Dialogue) -> None:
    ask(dialogue, "One?")
    before = dialogue.conversation
    with closing(_of(dialogue.regenerate())) as events:
        next(events)
    assert dialogue.conversation == before


def test_taking_back_and_dropping_the_oldest(dialogue: Dialogue) -> None:
    with pytest.raises(UsageError, match="nothing"):
        dialogue.pop_last_turn()
    for text in ("One?", "Two?", "Three?"):
        ask(dialogue, text)
    assert dialogue.pop_last_turn().text == "Three?"
    assert roles(dialogue) == ["user", "assistant"] * 2
    assert dialogue.drop_oldest() == 2
    assert [m.text for m in dialogue.conversation if m.role == "user"] == ["Two?"]
    assert dialogue.drop_oldest() == 2
    assert dialogue.conversation.messages == ()


def test_a_system_message_is_sent_but_is_no_turn(dialogue: Dialogue) -> None:
    ask(dialogue, "One?")
    assert dialogue.stats is not None
    without = dialogue.stats.prompt_tokens
    dialogue.clear()
    dialogue.system = "Be brief."
    ask(dialogue, "One?")
    assert dialogue.stats.prompt_tokens > without + len("Be brief.")
    assert roles(dialogue) == ["user", "assistant"]


def test_attached_text_comes_before_what_is_typed(dialogue: Dialogue) -> None:
    dialogue.attach_text(NOTES)
    assert dialogue.compose("Sum up.").text == "notes.txt:\nsome notes\n\nSum up."
    assert dialogue.compose("").text == "notes.txt:\nsome notes"


def test_pictures_without_a_question_are_described(dialogue: Dialogue) -> None:
    dialogue.attach(PHOTO)
    assert dialogue.compose(" ").text == "Describe this image."
    dialogue.attach(OTHER)
    assert dialogue.compose("").text == "Describe these images."


def test_chips_say_what_the_model_gets(dialogue: Dialogue) -> None:
    attachment = dialogue.attach(PHOTO)
    assert chip(attachment) == f"drawing.png {attachment.width}x{attachment.height}, 4 tiles"
    with pytest.raises(ImageError):
        dialogue.attach(ImagePart(b"no picture", "notes.txt"))
    assert len(dialogue.attachments) == 1


def test_a_text_only_model_takes_no_pictures_and_another_model_goes_on(
    dialogue: Dialogue, tmp_path: Path, engine: Engine
) -> None:
    ask(dialogue, "One?")
    dialogue.switch(load(make_checkpoint(tmp_path / "text", text_only_config()), device="cpu"))
    with pytest.raises(UsageError, match="text-only"):
        dialogue.attach(PHOTO)
    ask(dialogue, "Two?")
    assert roles(dialogue) == ["user", "assistant"] * 2
    dialogue.switch(engine)
    ask(dialogue, "Three?")
    assert roles(dialogue) == ["user", "assistant"] * 3


def _asked(dialogue: Dialogue, text: str) -> Generator[object]:
    return _of(dialogue.ask(dialogue.compose(text)))


def _of(events: Generator[object]) -> Generator[object]:
    """A generator that closes the one inside when it is closed, as ``for`` in a function does."""
    yield from events
