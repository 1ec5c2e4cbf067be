"""Markdown colours for a dark, light or unknown background. No background is set, as it would be copied along."""

from dataclasses import dataclass
from functools import cache

from rich.color import Color
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax, SyntaxTheme, TokenType

from mllama_cli.core.errors import UsageError


@dataclass(frozen=True)
class MarkdownTheme:
    """Rich styles; ``syntax`` names the Pygments style of code blocks, empty for none."""

    syntax: str
    code: str
    link: str
    url: str
    headings: tuple[str, str, str]
    quote: str = "dim"
    marker: str = "bold"
    rule: str = "dim"
    table_header: str = "bold"
    strong: str = "bold"
    emphasis: str = "italic"
    struck: str = "strike"


_THEMES = {
    # Magenta and red of the 16 ANSI colours are readable on white and on black: blue is not on black, the others are
    # not on white.
    "auto": MarkdownTheme("ansi_both", "magenta", "underline", "dim", ("bold magenta", "bold", "bold italic")),
    "dark": MarkdownTheme(
        "monokai", "bright_cyan", "underline", "bright_blue", ("bold bright_magenta", "bold bright_cyan", "bold")
    ),
    "light": MarkdownTheme("friendly", "blue", "underline", "blue", ("bold magenta", "bold blue", "bold")),
    "none": MarkdownTheme("", "bold", "underline", "dim", ("bold underline", "bold", "bold italic")),
}


_ANSI_BOTH: dict[TokenType, Style] = {
    ("Keyword",): Style(color="magenta"),
    ("Operator", "Word"): Style(color="magenta"),
    ("Name", "Tag"): Style(color="magenta"),
    ("Name", "Decorator"): Style(color="magenta"),
    ("Name", "Function"): Style(bold=True),
    ("Name", "Class"): Style(bold=True),
    ("Literal",): Style(color="red"),
    ("Comment",): Style(dim=True, italic=True),
    ("Generic", "Heading"): Style(bold=True),
    ("Generic", "Deleted"): Style(color="red"),
}


def markdown_theme(name: str) -> MarkdownTheme:
    """Return the theme of that name. Raise UsageError if it does not exist."""
    if name not in _THEMES:
        raise UsageError(f"There is no theme {name!r}", f"Themes: {', '.join(_THEMES)}.")
    return _THEMES[name]


@cache
def syntax_theme(name: str) -> SyntaxTheme:
    """Return the theme of code blocks of that name, without colours that some background would hide."""
    if name == "ansi_both":
        return ANSISyntaxTheme(_ANSI_BOTH)
    return _Readable(Syntax.get_theme(name))


class _Readable(SyntaxTheme):
    """Another theme whose near-white and near-black text has the terminal's own colour, readable on any background."""

    def __init__(self, theme: SyntaxTheme) -> None:
        self._theme = theme

    def get_style_for_token(self, token_type: TokenType) -> Style:
        style = self._theme.get_style_for_token(token_type)
        if style.color is None or not _is_extreme(style.color):
            return style
        return Style(bold=style.bold, italic=style.italic, underline=style.underline)

    def get_background_style(self) -> Style:
        return self._theme.get_background_style()


def _is_extreme(colour: Color) -> bool:
    """Return whether a colour is nearly white or nearly black."""
    if colour.triplet is None:
        return colour.name in ("white", "bright_white", "black")
    red, green, blue = colour.triplet.normalized
    lightness = 0.299 * red + 0.587 * green + 0.114 * blue
    return max(colour.triplet) - min(colour.triplet) < 64 and not 0.2 < lightness < 0.8
