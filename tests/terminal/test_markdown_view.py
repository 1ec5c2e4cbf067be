"""A streaming answer on the screen: every line once, whatever the pieces and the window, and nothing that steers it."""

import itertools
import random
import re

import pytest
from rich.style import Style

from mllama_cli.terminal.console import Terminal
from mllama_cli.terminal.markdown.blocks import block_lines
from mllama_cli.terminal.markdown.theme import markdown_theme
from mllama_cli.terminal.markdown.view import MarkdownView
from tests.console import Stream
from tests.terminal.window import Window

ANSWER = """\
# What I see

A *red* circle and **two** blue squares. The text says `HELLO` and goes on for long enough that any narrow window has \
to wrap it once or twice; 全角文字も正しく折り返されるべきです。 And an emoji 👍 with 🍓🍇.

1. First
2. Second, with a list:
   - inner one
   - inner two

     and a paragraph in it
3. Third

| Ding | Größe | 数 |
|:-----|------:|:--:|
| Kreis 🔵 | 12 | 三 |
| Quadrat | 1200 | 二 |

```python
def area(side: float) -> float:
    # a long line of code that is wider than a small window is not broken by us but by the terminal itself
    return side**2


print(area(3))
```

> A quotation
> of two lines.

---

The end, with [a link](https://example.org/a_b) and a price of $5 to $7.
"""
SIZES = [(24, 6), (40, 12), (80, 24), (132, 50)]
KNOWN = re.compile(r"\x1b\[(?:\?(?:2026|25)[hl]|2K|1A|[\d;]*m)|\r")
"""What the view itself may send: synchronized output, the cursor hidden and shown, erasing upwards, colours."""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time flies, so that every piece is drawn."""
    ticks = itertools.count(0, 1000)
    monkeypatch.setattr("mllama_cli.terminal.markdown.view.monotonic", lambda: next(ticks))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


class Shown:
    """A view on a window that already has something on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int = 80, rows: int = 24) -> None:
        self.patch = monkeypatch
        self.stdout = Stream(tty=True)
        self.window = Window(columns, rows)
        self.window.feed(">>> a question\n")
        self.resize(columns, rows)
        self.view = MarkdownView(Terminal(Stream(tty=True), self.stdout, Stream(tty=True)), theme="none")
        self.written = ""

    def resize(self, columns: int, rows: int) -> None:
        self.patch.setenv("COLUMNS", str(columns))
        self.patch.setenv("LINES", str(rows))
        self.window.screen.resize(rows, columns)

    def write(self, *pieces: str) -> "Shown":
        for piece in pieces:
            self.view.write(piece)
            self._look()
        return self

    def finish(self) -> list[str]:
        self.view.finish()
        self._look()
        return self.window.lines

    def _look(self) -> None:
        text = self.stdout.text()
        self.window.feed(text[len(self.written) :])
        self.written = text


def pieces(text: str, seed: int) -> list[str]:
    """The text cut at random, as tokens and slow networks cut it."""
    dice, result, place = random.Random(seed), [], 0
    while place < len(text):
        size = dice.choice((1, 1, 2, 3, 5, 8, 40, 200))
        result.append(text[place : place + size])
        place += size
    return result


def wrapped(text: str, columns: int) -> list[str]:
    """Return a line as the terminal shows it, wrapped at the right edge."""
    return Window(columns, 60).feed(text).lines


@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_every_line_stands_there_once_however_the_answer_came(
    monkeypatch: pytest.MonkeyPatch, columns: int, rows: int, seed: int
) -> None:
    whole = [line.plain for line in block_lines(ANSWER, markdown_theme("none"), columns - 1)]
    expected = [row for line in whole for row in wrapped(line, columns)]
    assert Shown(monkeypatch, columns, rows).write(*pieces(ANSWER, seed)).finish() == [">>> a question", *expected]


def test_what_is_above_stays_while_an_answer_grows_beyond_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch, 30, 6)
    items = [f"- item {number}\n" for number in range(40)]
    for item in items:
        shown.write(item)
        lines = shown.window.lines
        assert lines.count(">>> a question") == 1
        assert shown.window.visible[-1] or len(lines) < 6, "the newest line is in sight"
        assert len(set(lines)) == len(lines), "nothing is there twice"
    assert shown.finish() == [">>> a question", *(f"• item {number}" for number in range(40))]


def test_a_block_that_is_finished_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch).write("First paragraph.\n\n", "Second one.\n\n")
    before = len(shown.written)
    shown.write(*pieces("And a third that goes on and on.\n" * 5, 0))
    assert "First" not in shown.written[before:]


@pytest.mark.parametrize("size", [(30, 8), (100, 40)])
def test_a_window_that_changes_its_size_mid_answer(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    text = "\n\n".join(f"Paragraph {number}." for number in range(30))
    parts = pieces(text, 1)
    shown = Shown(monkeypatch, 60, 20).write(*parts[: len(parts) // 2])
    shown.resize(*size)
    lines = [line for line in shown.write(*parts[len(parts) // 2 :]).finish() if line]
    assert lines[-5:] == [f"Paragraph {number}." for number in range(25, 30)]
    assert len(set(lines)) == len(lines)


def test_wide_characters_keep_a_tables_columns_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "| Name | N |\n|---|---|\n| 円 🔵 | 1 |\n| plain | 2 |\n| é combining é | 3 |\n"
    shown = Shown(monkeypatch)
    shown.write(table).finish()
    rows = [line for line in shown.window.screen.display if re.search(r"\d", line)]
    screen = shown.window.screen
    columns = {
        place
        for row in range(screen.lines)
        for place in range(screen.columns)
        if screen.buffer[row][place].data in ("1", "2", "3", "N") and place > 4
    }
    assert len(rows) == 3
    assert len(columns) == 1


def test_lists_keep_their_numbers_and_code_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "9. nine\n10. ten\n\ntext\n\n3) three\n\n```\na\n\n\n\tb   \n```\n"
    lines = Shown(monkeypatch).write(*text).finish()[1:]
    assert lines == [" 9. nine", "10. ten", "", "text", "", "3. three", "", "a", "", "", "    b"]


HOSTILE = [
    "\x1b[2J\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07",
    "`\x1b[31m`",
    "```\n\x1b[5;5H\x9b31m\n```",
    "```\x1b]8;;x\x07\n1\n```",
    "&#27;[2J &#155;2J",
    "[x](https://example.org/\x1b[2J)",
    "| \x1b[2J |\n|---|\n| \x07 |",
    "a\rb\x08\x0c",
    "# \x1bc",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("whole", [True, False])
def test_what_a_model_says_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, text: str, whole: bool) -> None:
    shown = Shown(monkeypatch).write(*([text] if whole else text))
    shown.finish()
    left = KNOWN.sub("", shown.written)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", left)


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch).write(*"Some code:\n\n```python\nx = 1\ny =")
    shown.view.interrupt()
    assert shown.finish() == [">>> a question", "Some code:", "", "x = 1", "y ="]
    assert shown.window.screen.cursor.x == 0


def test_the_cursor_is_visible_again_whenever_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)
    for piece in pieces(ANSWER, 2):
        shown.write(piece)
        assert not shown.window.screen.cursor.hidden


def test_a_very_long_open_block_is_drawn_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch, 40, 10).write("```\n")
    for number in range(999):
        shown.write(f"line {number}\n")
    assert "line 998" in shown.window.visible
    assert shown.finish()[1:] == [f"line {number}" for number in range(999)]
    assert len(shown.written) < 999 * 10 * 60, "each piece costs a window at most"


def test_in_a_pipe_the_source_is_written_as_it_is() -> None:
    out = Stream()
    view = MarkdownView(Terminal(Stream(), out, Stream()))
    for piece in pieces(ANSWER, 4):
        view.write(piece)
    view.finish()
    assert out.text() == ANSWER


@pytest.mark.parametrize(
    "formula",
    [
        r"$$\int x^2 \, dx$$",
        r"$$\begin{pmatrix} a & b \\ c & d \end{pmatrix}$$",
        r"$a_1 \, b_2 * c * d$",
        r"\(a\_b \\ *c*\)",
        r"\[a_b_c \! d\]",
        r"\begin{align} a &= b \\ c &= d \end{align}",
        r"$\$5 \cdot x$",
        r"$$\text{a \$ sign}$$",
    ],
)
@pytest.mark.parametrize("context", ["{}", "It is {} here.", "- item {}", "> {}", "## {}", "1. a\n2. {}"])
def test_a_formula_keeps_its_backslashes(formula: str, context: str) -> None:
    lines = block_lines(context.format(formula), markdown_theme("none"), 200)
    assert formula in "\n".join(line.plain for line in lines)


@pytest.mark.parametrize(("opening", "closing"), [("$$", "$$"), (r"\[", r"\]"), (r"\begin{align*}", r"\end{align*}")])
def test_a_formula_of_several_lines_is_no_list_and_no_quotation(
    opening: str, closing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    formula = f"{opening}\na_1 \\\\ b_1\n- c * d * e\n> 0 \\, x\n1. y\n# z\n{closing}"
    text = f"Before:\n\n{formula}\n\nAfter *this*."
    for step in (1, 7, len(text)):
        pieces = [text[start : start + step] for start in range(0, len(text), step)]
        shown = "\n".join(Shown(monkeypatch).write(*pieces).finish())
        assert formula in shown
        assert "After this." in shown


@pytest.mark.parametrize("text", ["From $5 to $7 *now*.", "$$$ is *much*.", "US$ 5 and $ 6 *here*", r"a \*b\* *c*"])
def test_prices_are_not_formulas(text: str) -> None:
    (line,) = block_lines(text, markdown_theme("none"), 200)
    assert line.plain == text.replace(r"\*", "#").replace("*", "").replace("#", "*")


CODE = {
    "python": "from dataclasses import dataclass\n@x\ndef f(x: int = 3) -> str:  # no\n    return 'a' + b[0]\n",
    "javascript": "const a = (b, c) => { return `x${b}`; } // no\n",
    "bash": 'for x in *; do echo "$x" | grep -v y; done # no\n',
    "html": "<a href='b'>text &amp;</a>\n",
    "json": '{"a": [1, true, null]}\n',
    "diff": "+added\n-removed\n unchanged\n",
}


@pytest.mark.parametrize("language", CODE)
@pytest.mark.parametrize("theme", ["auto", "dark", "light", "none"])
def test_no_text_is_nearly_white_or_nearly_black(theme: str, language: str) -> None:
    for line in block_lines(f"```{language}\n{CODE[language]}```", markdown_theme(theme), 80):
        for span in line.spans:
            style = Style.parse(span.style) if isinstance(span.style, str) else span.style
            if style.color is None:
                continue
            assert style.color.name not in ("white", "bright_white", "black")
            if style.color.triplet is not None:
                assert 40 < sum(style.color.triplet) / 3 < 235
            if theme == "auto":
                assert style.color.is_system_defined


def test_code_on_an_unknown_background_has_only_colours_that_light_and_dark_ones_show() -> None:
    stdout = Stream(tty=True)
    view = MarkdownView(Terminal(Stream(), stdout, Stream()), theme="auto")
    view.write(
        "# Head\n`code`\n```python\n@one\ndef f(x: int) -> str:  # why\n    return 'x' if x and 1 else None\n```\n"
    )
    view.finish()
    codes = re.findall(r"\x1b\[([\d;]*)m", stdout.text())
    colours = {code for each in codes for code in each.split(";") if len(code) > 1}
    assert colours - {"49"} == {"31", "35"}, "red and magenta, on the terminal's own background"
