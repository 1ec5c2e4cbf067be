"""Make chat.svg, the README's image, from a real chat that runs on a pseudo terminal.

    python .github/picture.py

Needs the `test` extra. Run it from the root of the repository when the chat's appearance has changed.
"""

import io
import re
import sys
import tempfile
from pathlib import Path

from pyte.screens import Char
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.terminal_chat import TerminalChat  # noqa: E402

NAMES = {"brown": "yellow", "brightblack": "bright_black", "brightcyan": "bright_cyan", "brightblue": "bright_blue"}


def talk(chat: TerminalChat) -> None:
    """Ask what the image shows."""
    chat.ask("How many circles are there?")
    chat.ask("What is above the blue square?")
    chat.ask("/image tests/data/card.png")
    chat.ask("What does it say?")


def window_text(chat: TerminalChat) -> Text:
    """Return the scrollback and the window, with colours."""
    screen = chat.window.screen
    rows = [*screen.history.top, *(screen.buffer[row] for row in range(screen.lines))]
    text = Text()
    for row in rows[: len(chat.lines)]:
        line = Text()
        for column in range(screen.columns):
            cell = row[column]
            line.append(cell.data, _style(cell))
        line.rstrip()
        text.append(line).append("\n")
    return text


def _style(cell: Char) -> Style:
    fore, back = (_colour(name) for name in (cell.fg, cell.bg))
    return Style(color=fore, bgcolor=back, bold=cell.bold, reverse=cell.reverse)


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    return f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else NAMES.get(name, name)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        env = {"MLLAMA_HOME": home, "HF_HUB_CACHE": f"{home}/hub", "MLLAMA_NOHISTORY": "1", "COLORTERM": "truecolor"}
        with TerminalChat(
            "chat", "--verbose", "--image", "tests/data/drawing.png", cwd=ROOT, env=env, columns=100
        ) as chat:
            talk(chat)
            text = window_text(chat)
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(text, end="")
    # Without web fonts: every reader has a monospaced font.
    code = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(
        title="mllama chat --verbose --image tests/data/drawing.png", theme=MONOKAI, code_format=code
    )
    (ROOT / ".github" / "chat.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
