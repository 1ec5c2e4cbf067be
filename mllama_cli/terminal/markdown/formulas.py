r"""Rules that keep LaTeX as written: Markdown would remove its backslashes and take ``_`` and ``*`` for emphasis."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

DOLLAR_MATH = re.compile(
    r"\$\$(?:[^$\\]|\\.)+?\$\$|\$(?=[^\s$])(?:[^$\n\\]|\\.){0,198}?(?<=[^\s\\])\$(?!\d)", re.DOTALL
)
"""``$$x$$``, and ``$x$`` as in pandoc: no space next to the dollars inside, no digit after, one line; so prices are
not formulas."""

_ENDS = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_ENVIRONMENT = re.compile(r"\\begin\{(\w+\*?)\}")


def keep_formulas_inline(parser: "MarkdownIt") -> None:
    """Teach ``parser`` the formulas inside a paragraph."""
    parser.inline.ruler.before("escape", "latex", _latex)
    parser.inline.ruler.before("escape", "dollar", _dollar)


def keep_formula_blocks(parser: "MarkdownIt") -> None:
    """Teach ``parser`` the formulas that begin on a line of their own, as ``math_block`` tokens."""
    alternatives = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("fence", "math_block", _block, alternatives)  # type: ignore[arg-type]


def _closing(opening: str) -> str:
    """Return what closes the formula that begins ``opening``; "" if none does."""
    if match := _ENVIRONMENT.match(opening):
        return f"\\end{{{match.group(1)}}}"
    return _ENDS.get(opening[:2], "")


def _latex(state: "StateInline", silent: bool) -> bool:
    opening = state.src[state.pos : state.pos + 60]
    closing = _closing(opening) if opening.startswith("\\") else ""
    if not closing:
        return False
    end = state.src.find(closing, state.pos + 2)
    # An unfinished formula is still LaTeX, so its opening stays.
    return _verbatim(state, silent, end + len(closing) if end >= 0 else state.pos + 2)


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


def _block(state: "StateBlock", start: int, last: int, silent: bool) -> bool:
    """Read a formula whose opening begins a line and whose closing ends one.

    An opening alone on its line is a formula even before its closing has arrived, as a fence is a code block.
    """
    if state.is_code_block(start):
        return False
    first = _line(state, start)
    closing = _closing(first) if not first.startswith("\\(") else ""
    if not closing:
        return False
    alone = first == first[:2] or _ENVIRONMENT.fullmatch(first) is not None
    end = start
    while not _line(state, end)[2 if end == start else 0 :].endswith(closing):
        end += 1
        if end >= last or (state.isEmpty(end) and not alone) or state.sCount[end] < state.blkIndent:
            if not alone or end < last:
                return False
            end = last - 1
            break
    if silent:
        return True
    token = state.push("math_block", "math", 0)
    token.content = state.getLines(start, end + 1, state.sCount[start], keepLastLF=False)
    token.map = [start, end + 1]
    state.line = end + 1
    return True


def _line(state: "StateBlock", number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].rstrip()
