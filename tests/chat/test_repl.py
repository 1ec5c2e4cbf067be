"""The interactive chat without its line editor: every command with good and bad arguments, over a real engine."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mllama_cli.chat.autosave import Saving
from mllama_cli.chat.commands.registry import COMMANDS, find_command
from mllama_cli.chat.dialogue import LiveChat
from mllama_cli.chat.repl import Look, Repl
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.forward import EagerDecoder
from mllama_cli.terminal import clipboard
from mllama_cli.terminal.console import Terminal
from tests.checkpoints import make_checkpoint, text_only_config
from tests.console import Stream

DATA = Path(__file__).parents[1] / "data"
PHOTO = str(DATA / "drawing.png")


class Typed:
    """Lines as a person types them; what the prompt showed is remembered."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.choices: list[str] = []
        self.shown: list[tuple[list[str], str]] = []

    def ask(self, chips: list[str], default: str = "") -> str:
        self.shown.append((chips, default))
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def choose(self, question: str, choices: str) -> str:
        self.shown.append(([question], choices))
        return self.choices.pop(0)


class Desk:
    """A chat with everything around it."""

    def __init__(self, engine: Engine, store: ChatStore | None, other: Engine) -> None:
        self.out, self.err = Stream(), Stream()
        self.terminal = Terminal(Stream(), self.out, self.err)
        self.typed = Typed()
        self.chat = LiveChat(engine, Sampling(max_tokens=5))

        def load_engine(name: str) -> Engine:
            if name != "other":
                raise UsageError(f"no model {name}", "Try other.")
            return other

        self.repl = Repl(
            self.terminal,
            self.chat,
            self.typed,
            Saving(self.terminal, store),
            load_engine=load_engine,
            default_sampling=lambda engine: Sampling(max_tokens=7),
            look=Look(preview=False),
        )

    def type(self, *lines: str) -> str:
        """Everything on stderr while these lines are handled."""
        before = len(self.err.text())
        self.typed.lines += lines
        self.repl.run()
        return self.err.text()[before:]

    @property
    def roles(self) -> list[str]:
        return [message.role for message in self.chat.conversation]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    folder = tmp_path_factory.mktemp("models")
    return (
        load(make_checkpoint(folder / "tiny"), device="cpu", vision=True),
        load(make_checkpoint(folder / "text", text_only_config()), device="cpu"),
    )


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats.db")


@pytest.fixture
def desk(engines: tuple[Engine, Engine], store: ChatStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(engines[0], store, engines[1])


def test_questions_are_answered_until_the_person_leaves(desk: Desk) -> None:
    desk.type("One?", "Two?", "/bye", "Three?")
    assert [m.text for m in desk.chat.conversation if m.role == "user"] == ["One?", "Two?"]
    assert desk.typed.lines == ["Three?"]
    assert desk.out.text().strip()


def test_a_picture_waits_for_its_question(desk: Desk) -> None:
    said = desk.type(f"/image {PHOTO}", "What is this?")
    assert "Attached drawing.png" in said
    assert [chips for chips, _ in desk.typed.shown] == [[], [desk.chat.examine(photo()).chip], []]
    (question, _) = desk.chat.conversation
    assert question.images[0].data == photo().data
    assert question.text == "What is this?"


def test_a_dropped_picture_alone_waits_and_inside_a_message_goes_along(desk: Desk, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "my photo.png")
    desk.type(f"'{tmp_path}/my photo.png'")
    assert desk.roles == []
    assert len(desk.chat.attachments) == 1
    desk.type(f"What is in {tmp_path!s}/my\\ photo.png now?")
    assert len(desk.chat.conversation.images) == 2
    assert desk.chat.conversation.messages[0].text == "What is in now?"


def test_a_missing_picture_is_an_error_and_nothing_is_sent(desk: Desk) -> None:
    said = desk.type("what is /nowhere/at/all.png ?", "/image nope.png", "/image")
    assert said.count("mllama: ") == 3
    assert "/nowhere/at/all.png" in said
    assert desk.roles == []


def test_pictures_can_be_listed_and_taken_away(desk: Desk) -> None:
    assert "No pictures" in desk.type("/images")
    assert "No picture is attached" in desk.type("/detach 1")
    card = str(DATA / "card.png")
    said = desk.type(f"/image {PHOTO}", f"/image {card}", "/images", "/detach 5", "/detach 1", "/images")
    assert "1. drawing.png" in said
    assert "a number from 1 to 2" in said
    assert [a.part.name.rpartition("/")[2] for a in desk.chat.attachments] == ["card.png"]
    desk.type("/detach")
    assert desk.chat.attachments == []


def test_previews_are_shown_on_demand(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mllama_cli.terminal.preview.show_preview", lambda terminal, image, **size: shown.append(image.size)
    )
    assert "no picture to show" in desk.type("/preview")
    desk.type(f"/image {PHOTO}")
    assert shown == []
    desk.type("/preview", "What?", "/preview", "/preview on", f"/image {PHOTO}", "/preview off", f"/image {PHOTO}")
    assert len(shown) == 3
    assert "takes the number" in desk.type("/preview x")


def test_the_clipboards_picture_is_attached(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.processing.clipboard.read_clipboard_image", photo)
    desk.type("/paste")
    assert [a.part for a in desk.chat.attachments] == [photo()]

    def nothing() -> ImagePart:
        raise MllamaError("There is no picture in the clipboard", "Copy one first.")

    monkeypatch.setattr("mllama_cli.processing.clipboard.read_clipboard_image", nothing)
    assert "no picture in the clipboard" in desk.type("/paste")


def test_conversations_are_cleared_taken_back_edited_and_made_anew(desk: Desk) -> None:
    assert "nothing was asked" in desk.type("/undo")
    assert "nothing was asked" in desk.type("/regen")
    desk.type(f"/image {PHOTO}", "One?", "Two?", "/regen", "/undo")
    assert [m.text for m in desk.chat.conversation if m.role == "user"] == ["One?"]
    desk.type("/edit")
    assert desk.typed.shown[-1] == ([desk.chat.examine(photo()).chip], "One?")
    desk.type("One, changed?")
    assert desk.chat.conversation.messages[0].text == "One, changed?"
    assert desk.chat.conversation.images[0].data == photo().data
    desk.type("/clear")
    assert desk.roles == []


def test_text_of_a_file_goes_with_the_next_message(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("a note\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" ")
    said = desk.type("/read nope.txt", "/read binary", "/read empty", "/read", f"/read {tmp_path}")
    assert said.count("mllama: ") == 5
    assert "not UTF-8" in said
    desk.type("/read my notes.txt", "Sum up.")
    assert desk.chat.conversation.messages[0].text == "my notes.txt:\na note\n\nSum up."


def test_answers_and_code_are_copied(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_text", lambda terminal, text: copied.append(text))
    assert "no answer to copy" in desk.type("/copy")
    desk.chat.conversation = Conversation.ask("Code?").with_assistant(
        "Here:\n```python\nfirst\n```\nand\n```\nsecond\n  more\n```"
    )
    desk.type("/copy", "/copy code")
    assert copied == [desk.chat.last_answer, "second\n  more"]
    assert "takes nothing" in desk.type("/copy that")
    desk.chat.conversation = Conversation.ask("Code?").with_assistant("None.")
    assert "no code block" in desk.type("/copy code")


def test_parameters_are_set_under_both_tools_names(desk: Desk) -> None:
    desk.type(
        "/set parameter temperature 0.5", "/set parameter num_predict 9", "/set parameter repeat_penalty 1.1",
        "/set parameter top-k 3", "/set parameter seed 4", "/set parameter stop ENDE", "/set parameter stop \\n\\n",
    )  # fmt: skip
    assert desk.chat.sampling == Sampling(
        temperature=0.5, max_tokens=9, repetition_penalty=1.1, top_k=3, seed=4, stop=("ENDE", "\n\n")
    )
    desk.type("/set parameter seed none")
    assert desk.chat.sampling.seed is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set", "needs to know what"),
        ("/set volume 11", "does not know 'volume 11'"),
        ("/set parameter tempratur 1", "Did you mean temperature?"),
        ("/set parameter temperature", "needs a value"),
        ("/set parameter temperature hot", "must be a number, not 'hot'"),
        ("/set parameter top_k 1.5", "must be a whole number"),
        ("/set parameter temperature -1", "must be 0 or more"),
        ("/set parameter num_ctx 4096", "the model's own: 2048 tokens"),
        ("/model", "needs a name"),
        ("/model nope", "no model nope"),
        ("/imagee x.png", "Did you mean /image?"),
        ("/save", "needs a name"),
        ("/save x", "nothing to save yet"),
        ("/load", "needs the name"),
        ("/load nope", "nope"),
        ("/export", "needs a file name"),
        ("/export x.md", "nothing to export yet"),
    ],
)
def test_a_bad_argument_is_one_clear_error_and_changes_nothing(desk: Desk, line: str, says: str) -> None:
    before = replace(desk.chat.sampling)
    said = desk.type(line)
    assert says in said
    assert said.startswith("mllama: ")
    assert len(said.strip().splitlines()) <= 2
    assert (desk.chat.sampling, desk.roles) == (before, [])


def test_system_verbose_and_show(desk: Desk) -> None:
    desk.type("/system Be brief.", "/set verbose")
    assert "tokens/s" in desk.type("One?")
    shown = desk.type("/show")
    for text in ("Be brief.", "cpu", "of 2048 tokens used", "1 question", "max_tokens"):
        assert text in shown
    desk.type("/set system 'Be long.'", "/set quiet")
    assert desk.chat.system == "Be long."
    assert "tokens/s" not in desk.type("Two?")
    desk.type("/system")
    assert desk.chat.system == ""


def test_another_model_goes_on_with_the_conversation(desk: Desk) -> None:
    desk.type("One?", "/model other", "Two?")
    assert desk.roles == ["user", "assistant"] * 2
    assert not desk.chat.engine.can_see
    assert desk.chat.sampling.max_tokens == 7


def test_help_names_every_command(desk: Desk) -> None:
    for line in ("/help", "/?"):
        said = desk.type(line)
        for action in COMMANDS:
            assert all(f"/{name}" in said for name in action.names)


def test_a_message_that_begins_with_a_path_is_no_command(tmp_path: Path) -> None:
    assert find_command("hello /image") is None
    assert find_command(str(tmp_path)) is None
    assert find_command("/usr/bin is a folder") is None
    assert find_command("/tmp") is None
    for line in ("/image a b.png", "/IMAGE a b.png", "  /image   a b.png "):
        command = find_command(line)
        assert command is not None
        assert (command.action.names[0], command.argument) == ("image", "a b.png")
    with pytest.raises(UsageError):
        find_command("/" + "x" * 400)


def test_chats_are_kept_as_they_go_and_loaded_again(
    desk: Desk, store: ChatStore, engines: tuple[Engine, Engine]
) -> None:
    desk.type(f"/image {PHOTO}", "One?", "/set parameter temperature 0.25", "/system Be brief.", "Two?")
    before = desk.chat.conversation
    last = store.last()
    assert last is not None
    assert last.conversation == before
    desk.type("/save birds")
    fresh = Desk(engines[0], store, engines[1])
    said = fresh.type("/history", "/load birds")
    assert "birds" in said
    assert "One?" in said
    assert fresh.chat.conversation == before
    assert (fresh.chat.sampling.temperature, fresh.chat.system) == (0.25, "Be brief.")
    fresh.type("Three?", "/undo", "/undo")
    saved = store.load("birds")
    assert [m.text for m in saved.conversation if m.role == "user"] == ["One?"]
    fresh.type("/clear", "Another?")
    assert len(store.chats()) == 2


def test_a_chat_is_exported(desk: Desk, tmp_path: Path) -> None:
    desk.type(f"/image {PHOTO}", "One?", "/export talk.md", "/export talk.json")
    assert "One?" in (tmp_path / "talk.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert "mllama: " in desk.type("/export talk.exe")


def test_without_a_store_nothing_is_kept_and_saving_says_so(engines: tuple[Engine, Engine]) -> None:
    desk = Desk(engines[0], None, engines[1])
    desk.type("One?")
    assert "--no-log" in desk.type("/save x")
    assert "not saved" in desk.type("/show")


def test_a_store_that_fails_is_told_once_and_the_chat_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise MllamaError("The disk is full", "Free some space.")

    monkeypatch.setattr(ChatStore, "save", full)
    said = desk.type("One?", "Two?")
    assert said.count("The disk is full") == 1
    assert desk.roles == ["user", "assistant"] * 2


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.chat.set_sampling(max_tokens=400)
    write = desk.out.write
    interrupted = interrupt_after(3, write)
    monkeypatch.setattr(desk.out, "write", interrupted)
    said = desk.type("Go on.")
    assert "Stopped." in said
    assert desk.roles == ["user", "assistant"]
    assert 0 < len(desk.chat.last_answer) < 400
    monkeypatch.setattr(desk.out, "write", write)
    desk.chat.set_sampling(max_tokens=5)
    desk.type("And now?")
    assert desk.roles == ["user", "assistant"] * 2


def test_memory_that_runs_out_leaves_what_was_said_and_the_chat(
    desk: Desk, store: ChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = EagerDecoder.tokens

    def short(self: EagerDecoder, *arguments: Any) -> Iterator[int]:
        tokens = decode(self, *arguments)
        yield from islice(tokens, 3)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(EagerDecoder, "tokens", short)
        said = desk.type("Go on.")
    assert "not enough memory" in said
    assert desk.roles == ["user", "assistant"]
    kept = store.last()
    assert kept is not None
    assert [message.role for message in kept.whole.messages] == ["user", "assistant"]
    desk.type("And now?")
    assert desk.roles == ["user", "assistant"] * 2


def test_memory_that_runs_out_before_the_first_word_gives_the_question_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: EagerDecoder, *arguments: Any) -> Iterator[int]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(EagerDecoder, "tokens", none)
        desk.type("A long question.")
    assert desk.roles == []
    assert desk.typed.shown[-1] == ([], "A long question.")


def test_after_making_room_a_shortage_of_memory_gives_the_question_back_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: EagerDecoder, *arguments: Any) -> Iterator[int]:
        raise MemoryError

    desk.type("x" * 1900)
    desk.typed.choices = ["n"]
    with monkeypatch.context() as patch:
        patch.setattr(EagerDecoder, "tokens", none)
        desk.type("y" * 700)
    assert desk.roles == []
    assert desk.typed.shown[-1] == ([], "y" * 700)


def test_a_shortage_of_memory_elsewhere_leaves_the_chat(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(name: str) -> Engine:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(desk.repl, "load_engine", no_room)
    said = desk.type("One?", "/model other", "Two?")
    assert "There is not enough memory for this" in said
    assert desk.roles == ["user", "assistant"] * 2


def interrupt_after(count: int, write: Callable[[str], int]) -> Callable[[str], int]:
    left: Iterator[int] = iter(range(count))

    def interrupting(text: str) -> int:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return write(text)

    return interrupting


def test_a_full_context_asks_what_should_go(desk: Desk) -> None:
    desk.type("x" * 700, "y" * 700)
    assert desk.roles == ["user", "assistant"] * 2
    desk.typed.choices = ["k"]
    said = desk.type("z" * 700)
    assert "more than this model can read" in said
    assert desk.roles == ["user", "assistant"] * 2
    assert desk.typed.shown[-1] == ([], "z" * 700), "what was typed is not lost"
    desk.typed.choices = ["o"]
    desk.type("z" * 700)
    assert [m.text[0] for m in desk.chat.conversation if m.role == "user"] == ["y", "z"]
    desk.typed.choices = ["n"]
    desk.type("w" * 1500)
    assert [m.text[0] for m in desk.chat.conversation if m.role == "user"] == ["w"]
    desk.typed.choices = ["n"]
    said = desk.type("v" * 3000)
    assert "alone is too long" in said


def test_a_nearly_full_context_is_told_once(desk: Desk) -> None:
    said = desk.type("x" * 1900, "Two?")
    assert said.count("nearly full") == 1


def photo() -> ImagePart:
    return ImagePart(Path(PHOTO).read_bytes(), PHOTO)
