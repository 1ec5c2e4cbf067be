"""Split Markdown into blocks, and render them as lines of styled text."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from mllama_cli.core.text import strip_control
from mllama_cli.terminal.markdown.formulas import keep_formula_blocks
from mllama_cli.terminal.markdown.inline import inline_text
from mllama_cli.terminal.markdown.theme import MarkdownTheme, syntax_theme

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

BULLETS = "•◦▪"


def split_finished(source: str) -> tuple[list[str], str]:
    """Split into the blocks that no further text can change, and the rest: the last block and an unfinished line.

    A block is finished once a later one has begun in a complete line.
    """
    whole = source[: source.rfind("\n") + 1]
    starts = [token.map[0] for token in _top_level(whole) if token.map]
    if len(starts) < 2:
        return [], source
    lines = source.split("\n")
    blocks = ["\n".join(lines[start:end]) for start, end in pairwise(starts)]
    return blocks, "\n".join(lines[starts[-1] :])


def block_lines(source: str, theme: MarkdownTheme, width: int) -> list[Text]:
    """Render ``source`` as lines of at most ``width`` cells; code is not wrapped, so it can be copied."""
    return _blocks(_parser().parse(source), theme, max(width, 8), depth=0, tight=False)


def _top_level(source: str) -> "list[Token]":
    return [token for token in _parser().parse(source) if token.level == 0 and token.nesting >= 0]


def _blocks(tokens: "Sequence[Token]", theme: MarkdownTheme, width: int, *, depth: int, tight: bool) -> list[Text]:
    result: list[Text] = []
    for token, inside in _children(tokens):
        if result and not tight:
            result.append(Text())
        result += _block(token, inside, theme, width, depth)
    return result


def _block(token: "Token", inside: "Sequence[Token]", theme: MarkdownTheme, width: int, depth: int) -> list[Text]:
    match token.type:
        case "paragraph_open":
            return _wrapped(inline_text(inside[0].content, theme), width)
        case "heading_open":
            text = inline_text(inside[0].content, theme)
            text.stylize_before(theme.headings[min(int(token.tag[1]), 3) - 1])
            return _wrapped(text, width)
        case "fence" | "code_block":
            return _code(token.content, token.info, theme)
        case "bullet_list_open" | "ordered_list_open":
            return _list(token, inside, theme, width, depth)
        case "blockquote_open":
            lines = _blocks(inside, theme, width - 2, depth=depth, tight=False)
            return [Text.assemble(("│ ", theme.quote), line) for line in lines]
        case "table_open":
            return _table(inside, theme, width)
        case "math_block":
            formula = strip_control(token.content).split("\n")
            return [line for row in formula for line in _wrapped(Text(row), width)]
        case "hr":
            return [Text("─" * min(width, 40), theme.rule)]
        case _:
            return [Text(line) for line in strip_control(token.content).rstrip("\n").split("\n")]


def _children(tokens: "Sequence[Token]") -> "Iterator[tuple[Token, Sequence[Token]]]":
    """Yield each block with the tokens between its opening and closing tokens."""
    index = 0
    while index < len(tokens):
        token, start = tokens[index], index + 1
        depth: int = token.nesting
        while depth > 0:
            index += 1
            depth += tokens[index].nesting
        yield token, tokens[start:index]
        index += 1


def _wrapped(text: Text, width: int) -> list[Text]:
    lines = list(text.wrap(_plain_console(), width, overflow="fold"))
    for line in lines:
        line.rstrip()
    return lines or [Text()]


def _code(code: str, info: str, theme: MarkdownTheme) -> list[Text]:
    code = strip_control(code).rstrip("\n").expandtabs(4)
    language = strip_control(info).split()[0] if info.split() else ""
    if not theme.syntax or not language:
        return [Text(line, theme.code if not language else "") for line in code.split("\n")]
    text = Syntax("", language, theme=syntax_theme(theme.syntax), background_color="default").highlight(code)
    lines = list(text.split("\n", allow_blank=True))
    # The highlighter appends an empty line.
    while len(lines) > len(code.split("\n")):
        lines.pop()
    return lines


def _list(token: "Token", inside: "Sequence[Token]", theme: MarkdownTheme, width: int, depth: int) -> list[Text]:
    items = list(_children(inside))
    tight = not any(t.type == "paragraph_open" and not t.hidden for _, item in items for t in _first_level(item))
    ordered = token.type == "ordered_list_open"
    first = int(token.attrs.get("start", 1)) if ordered else 0
    last = first + len(items) - 1
    indent = len(str(last)) + 2 if ordered else 2
    result: list[Text] = []
    for number, (_, item) in enumerate(items, first):
        marker = f"{number}. ".rjust(indent) if ordered else f"{BULLETS[min(depth, len(BULLETS) - 1)]} "
        lines = _blocks(item, theme, width - indent, depth=depth + 1, tight=tight) or [Text()]
        if result and not tight:
            result.append(Text())
        for index, line in enumerate(lines):
            result.append(Text.assemble((marker, theme.marker) if index == 0 else " " * indent, line))
    return result


def _first_level(item: "Sequence[Token]") -> "Iterator[Token]":
    return (token for token, _ in _children(item))


def _table(inside: "Sequence[Token]", theme: MarkdownTheme, width: int) -> list[Text]:
    rows: list[list[Text]] = []
    justify: list[str] = []
    for token in inside:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "th_open":
            style = str(token.attrs.get("style", ""))
            justify.append(style.partition("text-align:")[2] or "left")
        elif token.type == "inline":
            rows[-1].append(inline_text(token.content, theme))
    table = Table(box=SIMPLE_HEAD, header_style=theme.table_header, pad_edge=False, show_edge=False)
    for title, side in zip(rows[0], justify, strict=True):
        table.add_column(title, justify=side if side in ("center", "right") else "left", overflow="fold")  # type: ignore[arg-type]
    for row in rows[1:]:
        table.add_row(*row)
    console = _plain_console()
    lines = console.render_lines(table, console.options.update(width=width), pad=False)
    texts = [Text.assemble(*((segment.text, segment.style or "") for segment in line)) for line in lines]
    for text in texts:
        text.rstrip()
    return texts


@cache
def _plain_console() -> Console:
    """Return a console for measuring and wrapping, never printed to."""
    return Console(width=80, color_system=None, force_terminal=False, legacy_windows=False)


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    # "reference" would hide the lines that define links.
    parser = MarkdownIt("commonmark").enable("table").disable(["reference", "inline"])
    keep_formula_blocks(parser)
    return parser
