"""The interactive chat without its line editor: every command with good and bad arguments, over a real engine."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mllama_cli.chat.autosave import Autosave
from mllama_cli.chat.commands.registry import COMMANDS, find_command
from mllama_cli.chat.dialogue import Dialogue
from mllama_cli.chat.repl import Repl
from mllama_cli.chat.shell import DisplayOptions, Shell
from mllama_cli.chat.storage.store import ChatStore
from mllama_cli.core.conversation import Conversation, ImagePart
from mllama_cli.core.errors import MllamaError, UsageError
from mllama_cli.core.sampling import Sampling
from mllama_cli.engine.engine import Engine, load
from mllama_cli.engine.forward import Decoder
from mllama_cli.terminal import clipboard
from mllama_cli.terminal.console import Terminal
from tests.checkpoints import make_checkpoint, text_only_config
from tests.console import Stream
from tests.decodes import count_png_decodes

DATA = Path(__file__).parents[1] / "data"
PHOTO = str(DATA / "drawing.png")


class Typed:
    """Lines as a person types them; what the prompt showed is remembered."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.choices: list[str] = []
        self.shown: list[tuple[list[str], str]] = []
        self.queue = ""
        self.cleared = False

    def ask(self, chips: list[str], default: str = "") -> str:
        self.shown.append((chips, default))
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def drop_queue(self) -> str:
        queue, self.queue = self.queue, ""
        return queue

    def choose(self, question: str, choices: str) -> str:
        self.shown.append(([question], choices))
        return self.choices.pop(0)


class ChatHarness:
    """A chat with everything around it."""

    def __init__(self, engine: Engine, store: ChatStore | None, other: Engine) -> None:
        self.out, self.err = Stream(), Stream()
        self.terminal = Terminal(Stream(), self.out, self.err)
        self.typed = Typed()
        self.dialogue = Dialogue(engine, Sampling(max_tokens=5))

        def load_engine(name: str) -> Engine:
            if name != "other":
                raise UsageError(f"no model {name}", "Try other.")
            return other

        self.shell = Shell(
            self.terminal,
            self.dialogue,
            self.typed,
            Autosave(self.terminal, store),
            load_engine=load_engine,
            default_sampling=lambda engine: Sampling(max_tokens=7),
            display=DisplayOptions(preview=False),
        )

    def type(self, *lines: str) -> str:
        """Everything on stderr while these lines are handled."""
        before = len(self.err.text())
        self.typed.lines += lines
        Repl(self.shell).run()
        return self.err.text()[before:]

    @property
    def roles(self) -> list[str]:
        return [message.role for message in self.dialogue.conversation]


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
def harness(
    engines: tuple[Engine, Engine], store: ChatStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ChatHarness:
    monkeypatch.chdir(tmp_path)
    return ChatHarness(engines[0], store, engines[1])


def test_questions_are_answered_until_the_person_leaves(harness: ChatHarness) -> None:
    harness.type("One?", "Two?", "/bye", "Three?")
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"] == ["One?", "Two?"]
    assert harness.typed.lines == ["Three?"]
    assert harness.out.text().strip()


def test_a_picture_waits_for_its_question(harness: ChatHarness) -> None:
    said = harness.type(f"/image {PHOTO}", "What is this?")
    assert "Attached drawing.png" in said
    assert [chips for chips, _ in harness.typed.shown] == [[], ["drawing.png"], []]
    (question, _) = harness.dialogue.conversation
    assert question.images[0].data == photo().data
    assert question.text == "What is this?"


def test_a_dropped_picture_alone_waits_and_inside_a_message_goes_along(harness: ChatHarness, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "my photo.png")
    harness.type(f"'{tmp_path}/my photo.png'")
    assert harness.roles == []
    assert len(harness.dialogue.attachments) == 1
    harness.type(f"What is in {tmp_path!s}/my\\ photo.png now?")
    assert len(harness.dialogue.conversation.images) == 2
    assert harness.dialogue.conversation.messages[0].text == "What is in now?"


def test_a_missing_picture_is_an_error_and_nothing_is_sent(harness: ChatHarness) -> None:
    said = harness.type("what is /nowhere/at/all.png ?", "/image nope.png", "/image")
    assert said.count("mllama: ") == 3
    assert "/nowhere/at/all.png" in said
    assert harness.roles == []


def test_pictures_can_be_listed_and_taken_away(harness: ChatHarness) -> None:
    assert "No images" in harness.type("/images")
    assert "Nothing is attached" in harness.type("/detach 1")
    card = str(DATA / "card.png")
    said = harness.type(f"/image {PHOTO}", f"/image {card}", "/images", "/detach 5", "/detach 1", "/images")
    assert "1. drawing.png" in said
    assert "a number from 1 to 2" in said
    assert [a.name.rpartition("/")[2] for a in harness.dialogue.attachments] == ["card.png"]
    harness.type("/detach")
    assert harness.dialogue.attachments == []


def test_previews_are_shown_on_demand(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mllama_cli.terminal.graphics.show_preview", lambda terminal, image, **size: shown.append(image.size)
    )
    monkeypatch.setattr(
        "mllama_cli.terminal.graphics.show_thumbnails",
        lambda terminal, thumbnails: shown.extend(each.image.size for each in thumbnails),
    )
    assert "no image to show" in harness.type("/preview")
    harness.type(f"/image {PHOTO}")
    assert shown == []
    harness.type("/preview", "What?", "/preview", "/preview on", f"/image {PHOTO}", "/preview off", f"/image {PHOTO}")
    assert len(shown) == 3
    assert "takes the number" in harness.type("/preview x")


def test_an_image_is_decoded_once(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = count_png_decodes(monkeypatch)
    harness.type("/preview on", f"/image {PHOTO}", "What is this?", "/preview", "/regen", "/edit", "And now?")
    assert harness.roles == ["user", "assistant"]
    assert len(opened) == 1


def test_the_clipboards_picture_is_attached(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllama_cli.processing.clipboard.read_clipboard_image", photo)
    harness.type("/paste")
    assert harness.dialogue.attachments == [photo()]

    def nothing() -> ImagePart:
        raise MllamaError("There is no picture in the clipboard", "Copy one first.")

    monkeypatch.setattr("mllama_cli.processing.clipboard.read_clipboard_image", nothing)
    assert "no picture in the clipboard" in harness.type("/paste")


def test_conversations_are_cleared_undone_edited_and_regenerated(harness: ChatHarness) -> None:
    assert "nothing was asked" in harness.type("/undo")
    assert "nothing was asked" in harness.type("/regen")
    harness.type(f"/image {PHOTO}", "One?", "Two?", "/regen", "/undo")
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"] == ["One?"]
    harness.type("/edit", "One, changed?")
    assert harness.typed.shown[-2] == (["drawing.png"], "One?")
    assert harness.dialogue.conversation.messages[0].text == "One, changed?"
    assert harness.dialogue.conversation.images[0].data == photo().data
    harness.type("/clear")
    assert harness.roles == []


def test_editing_loses_nothing_before_the_new_question_is_answered(harness: ChatHarness, store: ChatStore) -> None:
    def questions() -> list[str]:
        kept = store.last()
        assert kept is not None
        said = [[m.text for m in chat if m.role == "user"] for chat in (kept.whole, harness.dialogue.conversation)]
        assert said[0] == said[1]
        return said[0]

    harness.type(f"/image {PHOTO}", "One?", "Two?", "/edit")
    assert harness.typed.shown[-1] == ([], "Two?")
    assert questions() == ["One?", "Two?"]
    harness.type("/edit", "/images")
    assert questions() == ["One?", "Two?"]
    harness.type("/undo", f"/image {PHOTO}", "/edit")
    assert harness.typed.shown[-1] == (["drawing.png"], "One?")
    harness.typed.cleared = True
    harness.type("/edit", "A new one?")
    harness.typed.cleared = False
    assert questions() == ["One?", "A new one?"]
    assert len(harness.dialogue.conversation.images) == 2, "the attached one went with the new question"
    harness.type("/edit", "/nowhere/at/all.png too?")
    assert questions() == ["One?", "A new one?"]
    harness.type("/edit", "Three?")
    assert questions() == ["One?", "Three?"]


def test_an_edited_question_that_is_too_long_leaves_the_old_one(harness: ChatHarness) -> None:
    harness.type("One?", "/edit", "x" * 3000)
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"] == ["One?"]
    assert harness.typed.shown[-1] == ([], "x" * 3000)


def test_what_undo_removes_can_be_restored(harness: ChatHarness, store: ChatStore) -> None:
    harness.type("One?", "Two?")
    before = harness.dialogue.conversation
    harness.type("/undo", "/undo", "/redo", "/redo")
    assert harness.dialogue.conversation == before
    kept = store.last()
    assert kept is not None
    assert kept.conversation == before
    assert "nothing to restore" in harness.type("/undo", "Three?", "/redo")


@pytest.mark.parametrize("pattern", ["*.png", "p?.png", "{tmp}/p*", "{tmp}", ".", "{tmp}/*.PNG", "p[0-9].png"])
def test_images_are_attached_by_pattern_and_folder(harness: ChatHarness, tmp_path: Path, pattern: str) -> None:
    for name in ("p1.png", "p2.png"):
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    (tmp_path / "p.txt").write_text("")
    (tmp_path / "p4.PNG").mkdir()
    (tmp_path / "p4.PNG").rmdir()
    harness.type(f"/image {pattern.format(tmp=tmp_path)}")
    expected = [] if "PNG" in pattern else ["p1.png", "p2.png"]
    assert harness.dialogue.chips == expected


def test_many_images_are_asked_about(harness: ChatHarness, tmp_path: Path) -> None:
    for number in range(9):
        Image.new("RGB", (30, 20), "red").save(tmp_path / f"{number}.png")
    harness.typed.choices = ["n", "y"]
    harness.type("/image *.png")
    assert harness.dialogue.chips == []
    harness.type("/image *.png")
    assert len(harness.dialogue.chips) == 9


def test_models_and_chats_are_listed_without_a_name(harness: ChatHarness) -> None:
    said = harness.type("/model")
    assert "1. " in said
    assert "sketch" in said
    assert "no saved chats" in harness.type("/load")
    harness.type("One?", "/save first of all")
    said = harness.type("/load")
    assert "first of all" in said
    assert "One?" in said


def test_a_hint_can_be_pasted_into_a_shell(harness: ChatHarness) -> None:
    for name in ("my first chat", "it's", "a;b"):
        said = harness.type("One?", f"/save {name}")
        command = said[said.index("`mllama") + 1 : said.rindex("`")]
        assert shlex.split(command) == ["mllama", "chat", "--resume", name]


def test_what_is_typed_ahead_is_not_sent_after_ctrl_c_nor_taken_for_a_choice(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.typed.queue = "and then?"
    with monkeypatch.context() as patch:
        patch.setattr(harness.out, "write", interrupt_after(1, harness.out.write))
        harness.type("Go on.")
    assert harness.typed.shown[-1] == ([], "and then?")
    harness.type("/clear", "x" * 700, "y" * 700)
    harness.typed.queue = "o"
    harness.typed.choices = ["k"]
    harness.type("z" * 700)
    assert harness.typed.shown[-1] == ([], "z" * 700 + "\no")


def test_a_message_that_is_too_long_alone_costs_no_other(harness: ChatHarness) -> None:
    harness.type("One?", "Two?")
    said = harness.type("v" * 3000)
    assert "This message alone is too long" in said
    assert "Nothing was removed" in said
    assert harness.typed.shown[-1] == ([], "v" * 3000)
    assert harness.roles == ["user", "assistant"] * 2


def test_text_of_a_file_goes_with_the_next_message(harness: ChatHarness, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("a note\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" ")
    said = harness.type("/read nope.txt", "/read binary", "/read empty", "/read", f"/read {tmp_path}")
    assert said.count("mllama: ") == 5
    assert "not UTF-8" in said
    harness.type("/read my notes.txt", "/read ./my notes.txt", f"/read {tmp_path}/my notes.txt")
    assert harness.typed.shown[-1] == (["my notes.txt 1 line"], "")
    assert "1. my notes.txt 1 line" in harness.type("/images")
    harness.type(f"/image {PHOTO}", "/detach 2")
    assert harness.typed.shown[-1] == (["drawing.png"], "")
    harness.type("/detach", "/read my notes.txt", "Sum up.")
    assert harness.dialogue.conversation.messages[0].text == "my notes.txt:\na note\n\nSum up."


def test_answers_and_code_are_copied(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_text", lambda terminal, text: copied.append(text))
    assert "no answer to copy" in harness.type("/copy")
    harness.dialogue.conversation = Conversation.ask("Code?").with_assistant(
        "Here:\n```python\nfirst\n```\nand\n```\nsecond\n  more\n```"
    )
    harness.type("/copy", "/copy code")
    assert copied == [harness.dialogue.last_answer, "second\n  more"]
    assert "takes no argument" in harness.type("/copy that")
    harness.dialogue.conversation = Conversation.ask("Code?").with_assistant("None.")
    assert "no code block" in harness.type("/copy code")


def test_parameters_are_set_under_both_tools_names(harness: ChatHarness) -> None:
    harness.type(
        "/set parameter temperature 0.5", "/set parameter num_predict 9", "/set parameter repeat_penalty 1.1",
        "/set parameter top-k 3", "/set parameter seed 4", "/set parameter stop ENDE", "/set parameter stop \\n\\n",
    )  # fmt: skip
    assert harness.dialogue.sampling == Sampling(
        temperature=0.5, max_tokens=9, repetition_penalty=1.1, top_k=3, seed=4, stop=("ENDE", "\n\n")
    )
    harness.type("/set parameter seed none")
    assert harness.dialogue.sampling.seed is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set", "needs a setting"),
        ("/set volume 11", "does not know 'volume 11'"),
        ("/set parameter tempratur 1", "Did you mean temperature?"),
        ("/set parameter temperature", "needs a value"),
        ("/set parameter temperature hot", "must be a number, not 'hot'"),
        ("/set parameter top_k 1.5", "must be a whole number"),
        ("/set parameter temperature -1", "must be 0 or more"),
        ("/set parameter num_ctx 4096", "the model's: 2048 tokens"),
        ("/set verbose loud", "takes on or off, not 'loud'"),
        ("/set quiet off", "does not know 'quiet off'"),
        ("/set preview 2", "takes on or off"),
        ("/set theme pink", "does not know"),
        ("/show xx", "takes no argument, not 'xx'"),
        ("/images all", "takes no argument"),
        ("/undo 2", "takes no argument"),
        ("/redo", "nothing to restore"),
        ("/edit", "nothing was asked"),
        ("/help nothing", "no command /nothing"),
        ("/model nope", "no model nope"),
        ("/imagee x.png", "Did you mean /image?"),
        ("/save", "needs a name"),
        ("/save x", "still empty"),
        ("/load nope", "nope"),
        ("/export", "needs a file name"),
        ("/export x.md", "still empty"),
    ],
)
def test_a_bad_argument_is_one_clear_error_and_changes_nothing(harness: ChatHarness, line: str, says: str) -> None:
    before = replace(harness.dialogue.sampling)
    said = harness.type(line)
    assert says in said
    assert said.startswith("mllama: ")
    assert len(said.strip().splitlines()) <= 2
    assert (harness.dialogue.sampling, harness.roles) == (before, [])


def test_system_verbose_and_show(harness: ChatHarness) -> None:
    harness.type("/system Be brief.", "/set verbose")
    assert "tokens/s" in harness.type("One?")
    shown = harness.type("/show")
    for text in ("Be brief.", "cpu", "of 2048 tokens used", "1 question", "max_tokens"):
        assert text in shown
    harness.type("/set system 'Be long.'", "/set quiet")
    assert harness.dialogue.system == "Be long."
    assert "tokens/s" not in harness.type("Two?")
    assert "Be long." in harness.type("/system")
    assert harness.dialogue.system == "Be long."
    harness.type("/system none")
    assert harness.dialogue.system == ""
    assert "no system message" in harness.type("/set system")
    harness.type("/set verbose on", "/set verbose off", "/set preview on")
    assert not harness.shell.display.verbose
    assert harness.shell.display.preview
    harness.type("/set preview off")
    assert not harness.shell.display.preview


def test_another_model_goes_on_with_the_conversation(harness: ChatHarness) -> None:
    harness.type("One?", "/model other", "Two?")
    assert harness.roles == ["user", "assistant"] * 2
    assert not harness.dialogue.engine.has_vision
    assert harness.dialogue.sampling.max_tokens == 7


def test_help_names_every_command(harness: ChatHarness) -> None:
    for line in ("/help", "/?"):
        said = harness.type(line)
        for command in COMMANDS:
            assert all(f"/{name}" in said for name in command.names)
            assert command.call in said


@pytest.mark.parametrize("columns", [30, 60, 69, 70, 100])
def test_help_explains_in_windows_of_any_width(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    harness.terminal.stderr = harness.err = Stream(tty=True)
    said = re.sub(r"\x1b\[[\d;]*m", "", harness.type("/help"))
    assert max(map(len, said.splitlines())) <= columns
    words = " ".join(said.split())
    for command in COMMANDS:
        assert command.call in words
    if columns < 70:
        for command in COMMANDS:
            assert command.help in words
    assert "drop a picture" in words.lower()
    assert "theme" in harness.type("/help set")


def test_a_message_that_begins_with_a_path_is_no_command(tmp_path: Path) -> None:
    assert find_command("hello /image") is None
    assert find_command(str(tmp_path)) is None
    assert find_command("/usr/bin is a folder") is None
    assert find_command("/tmp") is None
    for line in ("/image a b.png", "/IMAGE a b.png", "  /image   a b.png "):
        found = find_command(line)
        assert found is not None
        assert (found[0].names[0], found[1]) == ("image", "a b.png")
    with pytest.raises(UsageError):
        find_command("/" + "x" * 400)


def test_chats_are_kept_as_they_go_and_loaded_again(
    harness: ChatHarness, store: ChatStore, engines: tuple[Engine, Engine]
) -> None:
    harness.type(f"/image {PHOTO}", "One?", "/set parameter temperature 0.25", "/system Be brief.", "Two?")
    before = harness.dialogue.conversation
    last = store.last()
    assert last is not None
    assert last.conversation == before
    harness.type("/save birds")
    fresh = ChatHarness(engines[0], store, engines[1])
    said = fresh.type("/history", "/load birds")
    assert "birds" in said
    assert "One?" in said
    assert fresh.dialogue.conversation == before
    assert (fresh.dialogue.sampling.temperature, fresh.dialogue.system) == (0.25, "Be brief.")
    fresh.type("Three?", "/undo", "/undo")
    saved = store.load("birds")
    assert [m.text for m in saved.conversation if m.role == "user"] == ["One?"]
    fresh.type("/clear", "Another?")
    assert len(store.chats()) == 2


def test_a_chat_is_exported(harness: ChatHarness, tmp_path: Path) -> None:
    harness.type(f"/image {PHOTO}", "One?", "/export talk.md", "/export talk.json")
    assert "One?" in (tmp_path / "talk.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert "mllama: " in harness.type("/export talk.exe")


def test_without_a_store_nothing_is_kept_and_saving_says_so(engines: tuple[Engine, Engine]) -> None:
    harness = ChatHarness(engines[0], None, engines[1])
    harness.type("One?")
    assert "--no-log" in harness.type("/save x")
    assert "not saved" in harness.type("/show")


def test_a_store_that_fails_is_told_once_and_the_chat_goes_on(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise MllamaError("The disk is full", "Free some space.")

    monkeypatch.setattr(ChatStore, "save", full)
    said = harness.type("One?", "Two?")
    assert said.count("The disk is full") == 1
    assert harness.roles == ["user", "assistant"] * 2


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.dialogue.set_sampling(max_tokens=400)
    write = harness.out.write
    interrupted = interrupt_after(3, write)
    monkeypatch.setattr(harness.out, "write", interrupted)
    said = harness.type("Go on.")
    assert "Stopped." in said
    assert harness.roles == ["user", "assistant"]
    assert 0 < len(harness.dialogue.last_answer) < 400
    monkeypatch.setattr(harness.out, "write", write)
    harness.dialogue.set_sampling(max_tokens=5)
    harness.type("And now?")
    assert harness.roles == ["user", "assistant"] * 2


def test_memory_that_runs_out_leaves_what_was_said_and_the_chat(
    harness: ChatHarness, store: ChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Decoder.tokens

    def short(self: Decoder, *arguments: Any) -> Iterator[int]:
        tokens = decode(self, *arguments)
        yield from islice(tokens, 3)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "tokens", short)
        said = harness.type("Go on.")
    assert "not enough memory" in said
    assert harness.roles == ["user", "assistant"]
    kept = store.last()
    assert kept is not None
    assert [message.role for message in kept.whole.messages] == ["user", "assistant"]
    harness.type("And now?")
    assert harness.roles == ["user", "assistant"] * 2


def test_memory_that_runs_out_before_the_first_word_gives_the_question_back(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Decoder, *arguments: Any) -> Iterator[int]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "tokens", none)
        harness.type("A long question.")
    assert harness.roles == []
    assert harness.typed.shown[-1] == ([], "A long question.")


def test_after_making_room_a_shortage_of_memory_gives_the_question_back_too(
    harness: ChatHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Decoder, *arguments: Any) -> Iterator[int]:
        raise MemoryError

    harness.type("x" * 1900)
    harness.typed.choices = ["n"]
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "tokens", none)
        harness.type("y" * 700)
    assert harness.roles == []
    assert harness.typed.shown[-1] == ([], "y" * 700)


def test_a_shortage_of_memory_elsewhere_leaves_the_chat(harness: ChatHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(name: str) -> Engine:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(harness.shell, "load_engine", no_room)
    said = harness.type("One?", "/model other", "Two?")
    assert "There is not enough memory for this" in said
    assert harness.roles == ["user", "assistant"] * 2


def interrupt_after(count: int, write: Callable[[str], int]) -> Callable[[str], int]:
    left: Iterator[int] = iter(range(count))

    def interrupting(text: str) -> int:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return write(text)

    return interrupting


def test_a_full_context_asks_what_should_go(harness: ChatHarness) -> None:
    harness.type("x" * 700, "y" * 700)
    assert harness.roles == ["user", "assistant"] * 2
    harness.typed.choices = ["k"]
    said = harness.type("z" * 700)
    assert "more than this model can read" in said
    assert harness.roles == ["user", "assistant"] * 2
    assert harness.typed.shown[-1] == ([], "z" * 700), "what was typed is not lost"
    harness.typed.choices = ["o"]
    harness.type("z" * 700)
    assert [m.text[0] for m in harness.dialogue.conversation if m.role == "user"] == ["y", "z"]
    harness.typed.choices = ["n"]
    harness.type("w" * 1500)
    assert [m.text[0] for m in harness.dialogue.conversation if m.role == "user"] == ["w"]
    said = harness.type("v" * 3000)
    assert "alone is too long" in said


def test_a_nearly_full_context_is_told_once(harness: ChatHarness) -> None:
    said = harness.type("x" * 1900, "Two?")
    assert said.count("nearly full") == 1


def photo() -> ImagePart:
    return ImagePart(Path(PHOTO).read_bytes(), PHOTO)


@pytest.mark.parametrize(
    "line",
    [
        "/read ~nosuch/x.txt",
        "/read a\0b",
        f"/read {'a' * 300}/x.txt",
        "/export ~nosuch/x.md",
        f"/export {'a' * 300}/x.md",
        f"/export {'a' * 300}.md",
        "/export a\0b.md",
        f"/image {'a' * 300}/x.png",
        "/image ~nosuch/x.png",
        "/image file://[x.png",
        "/image http://[x.png",
        f"please see {'a' * 300}/x.png thanks",
        f"'{'a' * 300}/x.png'",
        "file://[x.png",
        "see file://[::1/x.png",
        "~nosuch/x.png",
        f"/{'a' * 300}",
        "/\0",
        "\udc80/x.png",
        "/load \udc80",
        "/model ~nosuch/model",
        "/save a\0b",
        "/set parameter seed 1\0",
        "/history \0\udc80",
    ],
    ids=lambda line: repr(line[:24]),
)
def test_no_line_ends_the_chat(harness: ChatHarness, line: str) -> None:
    harness.type("Hello?", line)
    harness.type("Still there?")
    assert [m.text for m in harness.dialogue.conversation if m.role == "user"][-1] == "Still there?"


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error", "x.png"), ValueError("odd\n\x1b[2J"), RuntimeError("strange"), KeyError("k")],
)
def test_an_unforeseen_error_is_one_line(harness: ChatHarness, error: Exception) -> None:
    def load_engine(name: str) -> Engine:
        raise error

    harness.shell.load_engine = load_engine
    said = harness.type("/model other").splitlines()
    assert len(said) == 2
    assert said[0].startswith("mllama: ")
    assert "The chat goes on." in said[1]
    harness.type("Still there?")
    assert harness.roles == ["user", "assistant"]


def test_a_prompt_that_only_looks_like_a_name_is_asked(harness: ChatHarness) -> None:
    for text in (f"{'word ' * 60} name this picture shapes.png", "~5 shapes? name them like shapes.png"):
        harness.type(text)
        assert harness.dialogue.conversation.messages[-2].text == text


def test_a_chat_that_cannot_be_saved_says_why_and_can_be_exported(
    engines: tuple[Engine, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked").write_text("a file where the folder should be")
    harness = ChatHarness(engines[0], ChatStore(tmp_path / "blocked" / "chats.db"), engines[1])
    assert "no longer saved" in harness.type("Hello?")
    for command in ("/save trip", "/load trip", "/history"):
        said = harness.type(command)
        assert "--no-log" not in said
        assert "mllama: " in said or "no saved chats" in said, said
    harness.type("/export talk.md", "/export talk.json")
    assert "Hello?" in (tmp_path / "talk.md").read_text()
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"] == "Hello?"
    (tmp_path / "blocked").unlink()
    assert "Saved as trip" in harness.type("/save trip")
    assert ChatStore(tmp_path / "blocked" / "chats.db").load("trip").conversation.messages[0].text == "Hello?"


def test_an_unsaved_chat_is_exported_from_memory(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    harness = ChatHarness(engines[0], None, engines[1])
    assert "still empty" in harness.type(f"/export {tmp_path}/a.md")
    harness.type("Hello?", f"/export {tmp_path}/a.md")
    assert "Hello?" in (tmp_path / "a.md").read_text()
    assert "--no-log" in harness.type("/save trip")
