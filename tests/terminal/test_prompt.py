"""The line where a person types, key by key."""

import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from mllama_cli.terminal.completer import ChatCompleter, CommandHelp
from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.keys import is_open, without_quotes
from mllama_cli.terminal.prompt import ChatPrompt, chip_rows
from tests.console import Stream

COMMANDS = [
    CommandHelp(("image", "attach"), "PATH", "image", "Attach a picture."),
    CommandHelp(("images",), "", "none", "List pictures."),
    CommandHelp(("read",), "FILE", "path", "Read a file."),
    CommandHelp(("model",), "NAME", "model", "Switch."),
    CommandHelp(("load",), "NAME", "chat", "Load."),
    CommandHelp(("set",), "...", "parameter", "Set."),
]
MODELS, CHATS = ["tiny", "11b", "meta-llama/Llama"], ["birds", "2"]
ENTER, ALT_ENTER, CTRL_C, CTRL_D, CTRL_G, CTRL_J, CTRL_R = "\r", "\x1b\r", "\x03", "\x04", "\x07", "\n", "\x12"
UP, TAB = "\x1b[A", "\t"
PASTE = "\x1b[200~{}\x1b[201~"


class Keyboard:
    def __init__(self, pipe: PipeInput, history: Path | None) -> None:
        self.err = Stream()
        self.pipe = pipe
        self.prompt = ChatPrompt(
            Terminal(Stream(), Stream(), self.err),
            history_file=history,
            commands=COMMANDS,
            complete_models=lambda: MODELS,
            complete_chats=lambda: CHATS,
            source=pipe,
            sink=DummyOutput(),
        )

    def type(self, keys: str, default: str = "", chips: Sequence[str] = ()) -> str:
        # From a thread: a pipe takes only so much before someone reads.
        sender = threading.Thread(target=self.pipe.send_text, args=[keys])
        sender.start()
        try:
            return self.prompt.ask(chips, default)
        finally:
            sender.join()

    def completed(self, text: str) -> list[str]:
        from prompt_toolkit.completion import CompleteEvent
        from prompt_toolkit.document import Document

        completer = ChatCompleter(COMMANDS, lambda: MODELS, lambda: CHATS)
        found = completer.get_completions(Document(text), CompleteEvent(completion_requested=True))
        return [text[: len(text) + c.start_position] + c.text for c in found]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Keyboard]]:
    for name in ("MLLAMA_EDITOR", "VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    with create_pipe_input() as pipe:
        yield lambda history=None: Keyboard(pipe, history)


@pytest.fixture
def keyboard(make: Callable[..., Keyboard]) -> Keyboard:
    return make()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (f"hello{ENTER}", "hello"),
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f"one{CTRL_J}two{ENTER}", "one\ntwo"),
        (f'"""one{ENTER}two{ENTER}"""{ENTER}', "one\ntwo"),
        (f'"""{ENTER}one{ENTER}{ENTER}two"""{ENTER}', "one\n\ntwo"),
        (f'"""all in one"""{ENTER}', "all in one"),
        (f"{ENTER} {ENTER}first{ENTER}", "first"),
        (f"wrong{CTRL_C}right{ENTER}", "right"),
        (PASTE.format("a\r\nb\rc") + ENTER, "a\nb\nc"),
        (f"say {PASTE.format('x')} now{ENTER}", "say x now"),
        (f"日本 😀{ENTER}", "日本 😀"),
    ],
)
def test_keys(keyboard: Keyboard, keys: str, text: str) -> None:
    assert keyboard.type(keys) == text


def test_ctrl_d_leaves_and_ctrl_c_on_an_empty_line_says_how(keyboard: Keyboard) -> None:
    with pytest.raises(EOFError):
        keyboard.type(CTRL_C + CTRL_D)
    assert "Ctrl-D or /bye leaves." in keyboard.err.text()


def test_a_long_paste_is_one_message_and_one_change(keyboard: Keyboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inserted line by line or key by key, it would be copied and drawn as often as it has lines or keys."""
    inserted: list[str] = []
    insert = Buffer.insert_text

    def counted(buffer: Buffer, data: str, **options: bool) -> None:
        inserted.append(data)
        insert(buffer, data, **options)

    monkeypatch.setattr(Buffer, "insert_text", counted)
    text = "\n".join(f"line {number} of a long text" for number in range(5000))
    assert keyboard.type(PASTE.format(text) + ENTER) == text
    assert inserted == [text]


def test_a_draft_can_be_changed(keyboard: Keyboard) -> None:
    assert keyboard.type(f", changed{ENTER}", default="One") == "One, changed"


def test_history_goes_up_is_searched_and_kept_private(make: Callable[..., Keyboard], tmp_path: Path) -> None:
    file = tmp_path / "state" / "history"
    keyboard = make(file)
    keyboard.type(f"first{ENTER}")
    keyboard.type(f"second{CTRL_J}line{ENTER}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = make(file)
    assert again.type(f"{UP}{ENTER}") == "second\nline"
    assert again.type(f"{CTRL_R}fir{ENTER}{ENTER}") == "first"


def test_a_history_that_cannot_be_written_is_told_and_typing_goes_on(
    make: Callable[..., Keyboard], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    keyboard = make(tmp_path / "file" / "history")
    assert keyboard.type(f"hello{ENTER}") == "hello"
    assert keyboard.type(f"again{ENTER}") == "again"
    assert keyboard.err.text().count("history is not saved") == 1


def test_the_editor_opens_and_its_text_comes_back(
    keyboard: Keyboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "editor.sh"
    script.write_text('#!/bin/sh\nprintf "%s, edited" "$(cat "$1")" > "$1.new" && mv "$1.new" "$1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(script))
    sender = threading.Timer(1.0, lambda: keyboard.pipe.send_text(ENTER))
    sender.start()
    assert keyboard.type(f"draft{CTRL_G}") == "draft, edited"
    sender.join()


def test_a_missing_editor_is_said_and_the_text_stays(keyboard: Keyboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert keyboard.type(f"draft{CTRL_G}{ENTER}") == "draft"
    assert "No editor found" in keyboard.err.text()


@pytest.mark.parametrize(
    ("keys", "answer"), [("o\r", "o"), ("x\rN\r", "n"), ("\r", "k"), (CTRL_C, "k"), ("oldest\r", "o")]
)
def test_a_choice_is_one_of_its_letters(keyboard: Keyboard, keys: str, answer: str) -> None:
    keyboard.pipe.send_text(keys)
    assert keyboard.prompt.choose("Which?", "onk") == answer


def test_tab_completes_commands_names_and_paths(
    keyboard: Keyboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("z photo (1).png", "a.txt", "b.jpg", ".hidden.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "m folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert keyboard.completed("/im") == ["/image", "/images"]
    assert keyboard.completed("/att") == ["/attach"]
    assert keyboard.completed("/model me") == ["/model meta-llama/Llama"]
    assert keyboard.completed("/load ") == ["/load birds", "/load 2"]
    assert keyboard.completed("/set par") == ["/set parameter"]
    assert keyboard.completed("/set parameter to") == ["/set parameter top_p", "/set parameter top_k"]
    assert keyboard.completed("/image ") == ["/image b.jpg", "/image z\\ photo\\ \\(1\\).png", "/image m\\ folder/"]
    assert keyboard.completed("/read ") == [
        "/read b.jpg", "/read z\\ photo\\ \\(1\\).png", "/read m\\ folder/", "/read a.txt",
    ]  # fmt: skip
    assert keyboard.completed("what is ./z") == ["what is ./z\\ photo\\ \\(1\\).png"]
    assert keyboard.completed("what is ./z\\ ph") == ["what is ./z\\ photo\\ \\(1\\).png"]
    assert keyboard.completed(f"{tmp_path}/b") == [f"{tmp_path}/b.jpg"]
    assert keyboard.completed("what is z") == []
    assert keyboard.completed("what is ./nowhere/x") == []


def test_what_tab_completes_is_found_as_a_picture(
    keyboard: Keyboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mllama_cli.chat.dropped_paths import find_images

    names = ["it's (1) & $2.png", 'say "hi".jpg', "naïve 写真 #3.webp", "back`tick[1]{2}.gif", "a;b|c<d>e*f?g!h.bmp"]
    for name in names:
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    for completion in keyboard.completed("./"):
        assert find_images(f"what is {completion}").paths[0].removeprefix("./") in names
    assert len(keyboard.completed("./")) == len(names)


def test_keys_typed_ahead_are_sent_one_message_after_the_other(keyboard: Keyboard) -> None:
    keys = f"first{ENTER}/regen{ENTER}sec\x7fcond\x1b[D!{ENTER}rest"
    assert keyboard.type(keys) == "first"
    assert keyboard.prompt.ask([]) == "/regen"
    assert keyboard.prompt.ask([]) == "secon!d"
    assert keyboard.prompt.drop_queue() == "rest"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (f"{ENTER}", ""),
        (f"one{ENTER}two", "one\ntwo"),
        ("日本 tw\x7fo", "日本 to"),
        (f"{UP}up{TAB}", "up"),
        (PASTE.format("a\rb"), "a\nb"),
    ],
)
def test_the_queue_is_dropped_as_text(keyboard: Keyboard, keys: str, text: str) -> None:
    assert keyboard.type(f"sent{ENTER}{keys}") == "sent"
    assert keyboard.prompt.drop_queue() == text
    assert keyboard.prompt.drop_queue() == ""


def test_clearing_the_line_is_noticed(keyboard: Keyboard) -> None:
    assert keyboard.type(f"{CTRL_C}new{ENTER}", default="old") == "new"
    assert keyboard.prompt.cleared
    assert keyboard.type(f"{ENTER}", default="old") == "old"
    assert not keyboard.prompt.cleared


@pytest.mark.parametrize("width", [20, 30, 60, 79, 200])
@pytest.mark.parametrize("count", [1, 2, 4, 9, 40])
def test_every_chip_is_shown_or_counted(width: int, count: int) -> None:
    names = [f"{'long ' * (number % 4)}name {number}.png" for number in range(count)]
    rows = chip_rows(names, width)
    assert len(rows) <= 3
    assert all(len(" ".join(row)) <= width for row in rows)
    chips = [chip for row in rows for chip in row]
    left = re.fullmatch(r"\+(\d+) more", chips[-1])
    shown = chips[:-1] if left else chips
    assert [int(chip[1:].split()[0].rstrip("…]")) for chip in shown] == list(range(1, len(shown) + 1))
    assert len(shown) + (int(left[1]) if left else 0) == count


def test_triple_quotes() -> None:
    assert is_open('"""')
    assert is_open('  """a\nb')
    assert is_open('"""a""b"')
    assert not is_open('"""a"""')
    assert not is_open('say """')
    assert without_quotes('"""\na\n"""') == "a"
    assert without_quotes('"""""') == '"""""'
