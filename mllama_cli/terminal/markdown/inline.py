"""Render inline Markdown: emphasis, code spans, links; LaTeX and HTML stay as written."""

from functools import cache
from typing import TYPE_CHECKING

from rich.text import Text

from mllama_cli.core.text import strip_control
from mllama_cli.terminal.markdown.formulas import keep_formulas_inline
from mllama_cli.terminal.markdown.theme import MarkdownTheme

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_STYLES = {"strong_open": "strong", "em_open": "emphasis", "s_open": "struck"}


def inline_text(source: str, theme: MarkdownTheme) -> Text:
    """Render the source of a paragraph, heading or cell as styled text; ``\\n`` only at hard line breaks."""
    out = Text()
    tokens = _parser().parseInline(source)[0].children or []
    _append(out, tokens, theme)
    out.expand_tabs(4)
    return out


def _append(out: Text, tokens: "list[Token]", theme: MarkdownTheme) -> None:
    styles: list[str] = []
    links: list[tuple[str, int]] = []
    for token in tokens:
        style = " ".join(styles) or None
        match token.type:
            case "text" | "text_special":
                out.append(_one_line(token.content), style)
            case "softbreak":
                out.append(" ", style)
            case "hardbreak":
                out.append("\n")
            case "code_inline":
                out.append(_one_line(token.content), " ".join([*styles, theme.code]))
            case "link_open":
                links.append((_one_line(str(token.attrs.get("href", ""))), len(out.plain)))
                styles.append(theme.link)
            case "link_close":
                styles.pop()
                url, start = links.pop()
                _append_url(out, url, out.plain[start:], theme)
            case "image":
                before = len(out.plain)
                out.append(_one_line(token.content) or "image", " ".join([*styles, theme.link]))
                _append_url(out, _one_line(str(token.attrs.get("src", ""))), out.plain[before:], theme)
            case kind if kind in _STYLES:
                styles.append(getattr(theme, _STYLES[kind]))
            case "strong_close" | "em_close" | "s_close":
                styles.pop()
            case _:
                out.append(_one_line(token.content), style)


def _append_url(out: Text, url: str, shown: str, theme: MarkdownTheme) -> None:
    if url and url not in (shown, f"mailto:{shown}"):
        out.append(f" ({url})", theme.url)


def _one_line(text: str) -> str:
    # Stripped here too, because an entity such as &#13; becomes a control character.
    return strip_control(text).replace("\n", " ")


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("strikethrough").disable("html_inline")
    keep_formulas_inline(parser)
    # Show URLs as written, not percent-encoded.
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    return parser
