"""Render inline Markdown: emphasis, code spans, links; LaTeX and HTML stay as written."""

import re
from functools import cache
from typing import TYPE_CHECKING

from rich.text import Text

from mllama_cli.core.text import strip_control
from mllama_cli.terminal.markdown.theme import MarkdownTheme

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

DOLLAR_MATH = re.compile(r"\$(?=\S)[^$\n]{0,198}?(?<=[^\s\\])\$(?!\d)|\$\$(?=\S)[^$\n]{0,198}?\$\$")
"""``$x$`` as in pandoc: no space next to the dollars inside, no digit after, one line; so prices are not formulas."""

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
    parser.inline.ruler.before("escape", "latex", _latex)
    parser.inline.ruler.before("escape", "dollar", _dollar)
    # Show URLs as written, not percent-encoded.
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    return parser


def _latex(state: "StateInline", silent: bool) -> bool:
    r"""Keep ``\(x\)`` and ``\[x\]``: Markdown would remove the backslashes and turn ``_`` into italics."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in ("\\(", "\\["):
        return False
    end = state.src.find("\\)" if opening == "\\(" else "\\]", state.pos + 2)
    # An unfinished formula is still LaTeX, so its opening stays.
    return _verbatim(state, silent, end + 2 if end >= 0 else state.pos + 2)


def _dollar(state: "StateInline", silent: bool) -> bool:
    if state.src[state.pos] != "$":
        return False
    found = DOLLAR_MATH.match(state.src, state.pos)
    return found is not None and _verbatim(state, silent, found.end())


def _verbatim(state: "StateInline", silent: bool, end: int) -> bool:
    if not silent:
        state.pending += state.src[state.pos : end].replace("\n", " ")
    state.pos = end
    return True
