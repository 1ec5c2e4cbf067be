"""Make docs/images/chat.svg and captions.svg from the real program, which runs on a pseudo terminal.

    python .github/picture.py

Needs the `test` extra. Run it from the root of the repository when the appearance of the chat or of a caption run has
changed.
"""

import io
import re
import shutil
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

from tests.console import SCRIPT  # noqa: E402
from tests.drawings import drawings  # noqa: E402
from tests.terminal_chat import CTRL_C, TerminalChat  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SHELL_PROMPT = "$ "
NAMES = {"brown": "yellow", "brightblack": "bright_black", "brightcyan": "bright_cyan", "brightblue": "bright_blue"}


def chat(home: str) -> None:
    """Ask what an image shows."""
    env = {**environment(home), "MLLAMA_NOHISTORY": "1"}
    with TerminalChat("chat", "--verbose", "--image", "tests/data/drawing.png", cwd=ROOT, env=env) as window:
        window.ask("How many circles are there?")
        window.ask("What is above the blue square?")
        window.ask("/image tests/data/card.png")
        window.ask("What does it say?")
        save(window_text(window), "mllama chat --verbose --image tests/data/drawing.png", "chat.svg")


def captions(home: str) -> None:
    """Caption a folder, with a look at the progress bar, a Ctrl-C and a second run that resumes."""
    folder = Path(home) / "work"
    folder.mkdir()
    drawings(folder / "photos", 120)
    (folder / "photos" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    env = {**environment(home), "PS1": SHELL_PROMPT, "PATH": f"{SCRIPT.parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    shell = shutil.which("bash") or "sh"
    with TerminalChat("--norc", "-i", cwd=folder, env=env, rows=24, program=shell) as window:
        prompt(window)
        window.type("mllama caption photos/ --batch-size 4\r")
        window.wait(lambda seen: re.search(r"\b[6-9]\d/12\d", seen.text) is not None)
        running = window_text(window)
        bar = next(index for index, line in enumerate(window.lines) if "/121" in line)
        window.type(CTRL_C)
        prompt(window)
        window.type("mllama caption photos/        # again: it resumes\r")
        prompt(window)
        window.type("cat photos/2.txt\r")
        window.wait("I see", after=bar)
        prompt(window)
        save(running + window_text(window, bar), "mllama caption photos/", "captions.svg")


def environment(home: str) -> dict[str, str]:
    return {"MLLAMA_HOME": home, "HF_HUB_CACHE": f"{home}/hub", "COLORTERM": "truecolor"}


def prompt(window: TerminalChat) -> None:
    """Wait until the shell can be typed to."""
    window.wait(lambda seen: seen.row().rstrip() == SHELL_PROMPT.rstrip())


def window_text(chat: TerminalChat, first: int = 0) -> Text:
    """Return the scrollback and the window from line ``first`` on, with colours."""
    screen = chat.window.screen
    rows = [*screen.history.top, *(screen.buffer[row] for row in range(screen.lines))]
    text = Text()
    for row in rows[first : len(chat.lines)]:
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


def save(text: Text, title: str, name: str) -> None:
    """Write a terminal's text as an SVG."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(text, end="")
    # Without web fonts: every reader has a monospaced font.
    code = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title=title, theme=MONOKAI, code_format=code)
    (IMAGES / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    for make in (chat, captions):
        with tempfile.TemporaryDirectory() as home:
            make(home)
