"""A small picture in the terminal: in the terminal's own graphics where it has them, else in coloured half-blocks."""

import base64
import io
import os
import shutil
import struct
import sys
from typing import TYPE_CHECKING

from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]

CELL_RATIO = 2
"""A character cell is about twice as high as wide."""

_CHUNK = 4096
"""Characters of base64 in one kitty escape sequence, at most."""


def show_preview(terminal: Terminal, image: "Image", *, max_columns: int, max_rows: int) -> None:
    """Draw ``image`` (RGB) in at most that many cells, ending on a fresh line. Nothing where stdout is no terminal."""
    if not terminal.stdout_is_tty or os.environ.get("TERM", "") in ("", "dumb"):
        return
    window = shutil.get_terminal_size()
    columns, rows = cells(image.size, min(max_columns, window.columns - 1), min(max_rows, window.lines - 2))
    if columns < 1 or rows < 1:
        return
    match graphics():
        case "kitty":
            drawn = kitty(image, columns, rows)
        case "iterm2":
            drawn = iterm2(image, columns, rows)
        case "sixel":
            drawn = in_sixel(image, columns, rows)
        case _ if os.environ.get("NO_COLOR"):
            return
        case _:
            drawn = half_blocks(image, columns, rows, true_colour=_true_colour())
    terminal.stdout.write(drawn)
    terminal.stdout.flush()


def graphics() -> str:
    """The protocol that this terminal is known to speak: "kitty", "iterm2", "sixel" or "".

    By the names that terminals put into the environment: asking the terminal itself could swallow typed keys. Inside
    tmux and screen, which pass neither protocol on, "".
    """
    env = os.environ
    if env.get("TMUX") or env.get("TERM", "").startswith(("screen", "tmux")):
        return ""
    program = env.get("TERM_PROGRAM", "").lower()
    if (
        env.get("KONSOLE_VERSION")
        or env.get("KITTY_WINDOW_ID")
        or "kitty" in env.get("TERM", "")
        or "ghostty" in (program, env.get("TERM", ""))
    ):
        return "kitty"
    if program in ("iterm.app", "wezterm", "mintty", "vscode") or env.get("LC_TERMINAL") == "iTerm2":
        # VS Code draws images only where its setting allows it; without, it ignores the sequence.
        return "" if program == "vscode" else "iterm2"
    if env.get("TERM", "").startswith(("foot", "mlterm", "contour", "yaft")) or program in ("mlterm", "contour"):
        return "sixel"
    return ""


def cells(size: tuple[int, int], max_columns: int, max_rows: int) -> tuple[int, int]:
    """(columns, rows) of a picture of ``size`` (width, height) pixels, as large as fits, its shape kept.

    >>> cells((400, 200), 32, 10), cells((100, 1000), 32, 10)
    ((32, 8), (2, 10))
    """
    width, height = size
    scale = min(max_columns / width, max_rows * CELL_RATIO / height)
    return max(1, round(width * scale)), max(1, round(height * scale / CELL_RATIO))


def kitty(image: "Image", columns: int, rows: int) -> str:
    """kitty's graphics protocol: a PNG in chunks of base64, shown in that many cells."""
    data = base64.standard_b64encode(_png(image, columns, rows)).decode()
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        control = f"a=T,f=100,q=2,c={columns},r={rows}," if number == 0 else ""
        parts.append(f"\x1b_G{control}m={int(number + 1 < len(chunks))};{chunk}\x1b\\")
    return "".join(parts) + "\n"


def iterm2(image: "Image", columns: int, rows: int) -> str:
    """iTerm2's inline images, which WezTerm and mintty speak too."""
    data = _png(image, columns, rows)
    settings = f"inline=1;size={len(data)};width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={settings}:{base64.standard_b64encode(data).decode()}\x07\n"


def in_sixel(image: "Image", columns: int, rows: int) -> str:
    """Sixel, which knows pixels only: as many as the terminal says that so many cells have."""
    from mllama_cli.terminal.sixel import sixel

    cell_width, cell_height = _cell_pixels()
    return sixel(image.convert("RGB").resize((columns * cell_width, rows * cell_height))) + "\n"


def _cell_pixels() -> Size:
    """(width, height) of a character cell in pixels; a usual one where the terminal does not say."""
    try:
        import fcntl
        import termios

        window = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("HHHH", window)
        if rows and columns and width >= columns and height >= rows:
            return width // columns, height // rows
    except (ImportError, OSError, ValueError):
        pass
    return 10, 20


def half_blocks(image: "Image", columns: int, rows: int, *, true_colour: bool = True) -> str:
    """Two pixels a cell: the upper half block's foreground and background."""
    from PIL import Image as Pillow

    small = image.convert("RGB").resize((columns, 2 * rows), Pillow.Resampling.BOX)
    data = small.tobytes()
    pixels = [tuple(data[start : start + 3]) for start in range(0, len(data), 3)]
    lines = []
    for row in range(rows):
        line = ""
        for column in range(columns):
            top, bottom = (pixels[(2 * row + half) * columns + column] for half in (0, 1))
            line += f"\x1b[{_colour(38, top, true_colour)};{_colour(48, bottom, true_colour)}m▀"
        lines.append(f"{line}\x1b[0m\n")
    return "".join(lines)


def _colour(layer: int, pixel: tuple[int, ...], true_colour: bool) -> str:
    red, green, blue = pixel
    if true_colour:
        return f"{layer};2;{red};{green};{blue}"
    # The 6 x 6 x 6 cube of 256-colour terminals.
    level = [round(value / 255 * 5) for value in (red, green, blue)]
    return f"{layer};5;{16 + 36 * level[0] + 6 * level[1] + level[2]}"


def _true_colour() -> bool:
    return os.environ.get("COLORTERM", "") in ("truecolor", "24bit") or bool(os.environ.get("WT_SESSION"))


def _png(image: "Image", columns: int, rows: int) -> bytes:
    # 20 pixels a column are more than most fonts have; a phone photo whole would be megabytes of base64.
    small = image.convert("RGB")
    small.thumbnail((20 * columns, 20 * CELL_RATIO * rows))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
