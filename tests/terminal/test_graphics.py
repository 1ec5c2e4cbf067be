"""Small pictures in the terminal: what each kind of terminal is sent, and that others are sent nothing."""

import base64
import io
import re

import pytest
from PIL import Image

from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.graphics import Thumbnail, cells, graphics_protocol, show_preview, show_thumbnails, sixel
from tests.console import Stream
from tests.terminal.window import Window

VARIABLES = (
    "TMUX",
    "KITTY_WINDOW_ID",
    "TERM_PROGRAM",
    "LC_TERMINAL",
    "NO_COLOR",
    "WT_SESSION",
    "COLORTERM",
    "KONSOLE_VERSION",
)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


@pytest.fixture
def halves() -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (400, 400), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 400, 200))
    return image


def drawn(image: Image.Image, *, tty: bool = True, columns: int = 32, rows: int = 10) -> str:
    out = Stream(tty=tty)
    show_preview(Terminal(Stream(tty=True), out, Stream(tty=True)), image, max_columns=columns, max_rows=rows)
    return out.text()


@pytest.mark.parametrize(
    ("env", "kind"),
    [
        ({}, ""),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "mlterm-256color"}, "sixel"),
        ({"TERM": "foot", "TMUX": "/tmp/tmux"}, ""),
        ({"KONSOLE_VERSION": "230800"}, "kitty"),
        ({"TERM_PROGRAM": "vscode"}, ""),
        ({"TERM_PROGRAM": "Apple_Terminal"}, ""),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, ""),
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, ""),
    ],
    ids=str,
)
def test_the_terminal_is_known_by_its_names(env: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert graphics_protocol() == kind


def test_kitty_is_sent_a_png_in_chunks(halves: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-kitty")
    image = halves.resize((800, 800))
    image.paste(Image.effect_noise((700, 300), 200), (0, 0))
    written = drawn(image)
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", written)
    assert written == "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in commands) + "\n"
    assert len(commands) > 2
    assert all(len(data) <= 4096 for _, data in commands)
    assert [keys[-3:] for keys, _ in commands] == ["m=1"] * (len(commands) - 1) + ["m=0"]
    assert "c=20,r=10" in commands[0][0]
    with Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in commands)))) as shown:
        assert shown.size == (400, 400)
        assert shown.getpixel((200, 390)) == (0, 0, 255)


def test_iterm2_is_sent_a_png(halves: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    found = re.fullmatch(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07\n", drawn(halves))
    assert found
    settings = dict(pair.split("=") for pair in found[1].split(";"))
    data = base64.b64decode(found[2])
    assert settings == {
        "inline": "1",
        "size": str(len(data)),
        "width": "20",
        "height": "10",
        "preserveAspectRatio": "1",
    }
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.getpixel((10, 10)) == (255, 0, 0)
        assert shown.getpixel((10, shown.height - 10)) == (0, 0, 255)


def test_sixel_is_sent_pixels(halves: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "foot")
    written = drawn(halves, columns=8, rows=4)
    assert written.endswith("\x1b\\\n")
    shown = from_sixel(written.rstrip("\n"))
    assert shown.size == (80, 80), "10 x 20 pixels a cell where the terminal does not say"
    assert shown.getpixel((3, 10)) == (255, 0, 0)
    assert shown.getpixel((79, 79)) == (0, 0, 255)


def test_a_sixel_picture_keeps_its_colours_and_rows() -> None:
    image = Image.effect_noise((37, 23), 90).convert("RGB")  # a height that no band of six rows divides
    image.putpixel((36, 22), (255, 0, 0))
    shown = from_sixel(sixel(image))
    assert shown.size == image.size
    for place in ((0, 0), (36, 22), (11, 6), (5, 17)):
        pairs = zip(shown.getpixel(place), image.getpixel(place), strict=True)  # type: ignore[arg-type]
        assert all(abs(a - b) <= 40 for a, b in pairs), place


def from_sixel(text: str) -> Image.Image:
    """What a terminal draws."""
    found = re.fullmatch(r'\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert found
    image = Image.new("RGB", (int(found[1]), int(found[2])))
    palette: dict[str, tuple[int, ...]] = {}
    column = top = 0
    colour = ""
    for number, definition, run, bits, control in re.findall(r"#(\d+)((?:;\d+)*)|!(\d+)([?-~])|([?-~]|\$|-)", found[3]):
        if number:
            colour = number
            if definition:
                palette[number] = tuple(round(int(v) * 2.55) for v in definition.split(";")[2:])
        elif control == "$":
            column = 0
        elif control == "-":
            column, top = 0, top + 6
        else:
            end = column + int(run or 1)
            for row in range(6):
                if (ord(bits or control) - 63) >> row & 1:
                    image.paste(palette[colour], (column, top + row, end, top + row + 1))  # type: ignore[arg-type]
            column = end
    return image


def test_elsewhere_two_pixels_share_a_cell(halves: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    lines = drawn(halves, columns=4, rows=1).splitlines()
    assert lines == ["\x1b[38;2;255;0;0;48;2;0;0;255m▀" * 2 + "\x1b[0m"]
    monkeypatch.delenv("COLORTERM")
    lines = drawn(halves, columns=4, rows=2).splitlines()
    assert lines == ["\x1b[38;5;196;48;5;196m▀" * 4 + "\x1b[0m", "\x1b[38;5;21;48;5;21m▀" * 4 + "\x1b[0m"]


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1"}], ids=str)
def test_nothing_where_it_could_not_be_seen(
    halves: Image.Image, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawn(halves, tty=False) == ""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert drawn(halves) == ""


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (640, 480), (7, 1000)], ids=str)
@pytest.mark.parametrize("window", [(80, 24), (20, 6), (3, 3)], ids=str)
def test_it_fits_its_place_and_the_window(
    size: tuple[int, int], window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(window[0]))
    monkeypatch.setenv("LINES", str(window[1]))
    lines = drawn(Image.new("RGB", size)).splitlines()
    assert len(lines) <= min(10, window[1] - 2)
    assert all(line.count("▀") <= min(32, window[0] - 1) for line in lines)
    columns, rows = cells(size, 32, 10)
    assert 1 <= columns <= 32
    assert 1 <= rows <= 10


@pytest.mark.parametrize(("columns", "per_row"), [(80, 4), (40, 2), (16, 1)])
def test_thumbnails_stand_side_by_side_over_their_names(
    halves: Image.Image, monkeypatch: pytest.MonkeyPatch, columns: int, per_row: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Stream(tty=True)
    names = ["1 a.png", "2 a very long name.png", "3 \x1b[2Jc.png", "4 d.png"]
    show_thumbnails(Terminal(Stream(tty=True), out, Stream(tty=True)), [Thumbnail(halves, name) for name in names])
    lines = Window(columns, 60).feed(out.text()).lines
    named = [line for line in lines if line.lstrip()[:1].isdigit()]
    assert [len(re.findall(r"\d \S", line)) for line in named] == [per_row] * (4 // per_row)
    assert "2 a very lo…" in "\n".join(named)
    assert len(lines) == 6 * (4 // per_row), "half as high as one alone"
    pictures = [line for line in lines if "▀" in line]
    assert all(len(line.split("  ")) >= per_row for line in pictures), "a gap between them"


@pytest.mark.parametrize("env", [{"TERM": "xterm-kitty"}, {"TERM_PROGRAM": "iTerm.app"}, {"TERM": "foot"}])
def test_thumbnails_by_a_protocol_leave_the_cursor_below_the_names(
    halves: Image.Image, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    out = Stream(tty=True)
    show_thumbnails(
        Terminal(Stream(tty=True), out, Stream(tty=True)), [Thumbnail(halves, "1 a.png"), Thumbnail(halves, "2 b.png")]
    )
    without = re.sub(r"\x1b_G.*?\x1b\\|\x1b\]1337;.*?\x07|\x1bP.*?\x1b\\", "", out.text(), flags=re.DOTALL)
    window = Window(80, 24).feed(without)
    assert window.lines == [*[""] * 5, "1 a.png       2 b.png"]
    assert (window.screen.cursor.x, window.screen.cursor.y) == (0, 6)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "1"}])
def test_no_thumbnails_where_they_cannot_be_seen(
    halves: Image.Image, monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    out = Stream(tty=True)
    show_thumbnails(Terminal(Stream(tty=True), out, Stream(tty=True)), [Thumbnail(halves, "1 a.png")])
    assert out.text() == ""
