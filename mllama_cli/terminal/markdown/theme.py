"""Markdown colours for a dark, light or unknown background. No background is set, as it would be copied along."""

from dataclasses import dataclass

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
    "dark": MarkdownTheme(
        "monokai", "bright_cyan", "underline", "bright_blue", ("bold bright_magenta", "bold bright_cyan", "bold")
    ),
    "light": MarkdownTheme("friendly", "blue", "underline", "blue", ("bold magenta", "bold blue", "bold")),
    "none": MarkdownTheme("", "bold", "underline", "dim", ("bold underline", "bold", "bold italic")),
}


def markdown_theme(name: str) -> MarkdownTheme:
    """Return the theme of that name. Raise UsageError if it does not exist."""
    if name not in _THEMES:
        raise UsageError(f"There is no theme {name!r}", f"Themes: {', '.join(_THEMES)}.")
    return _THEMES[name]
