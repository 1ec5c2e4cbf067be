"""Draw an image in the terminal, by its graphics protocol if it has one, else as half-blocks."""

import base64
import io
import itertools
import os
import shutil
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.cells import set_cell_size

from mllama_cli.core.text import strip_control
from mllama_cli.terminal.console import Terminal

if TYPE_CHECKING:
    from PIL.Image import Image

CELL_RATIO = 2
"""Height of a character cell divided by its width, about."""
SIXEL_COLOURS = 256
SIXEL_BAND = 6
HALF_BLOCK = "▀"
THUMBNAIL_COLUMNS, THUMBNAIL_ROWS = 32, 10
MIN_NAME_COLUMNS = 12
GAP = 2
"""Columns between thumbnails."""
KITTY_CHUNK = 4096
"""Base64 characters in a kitty escape sequence, at most."""


@dataclass(frozen=True)
class Thumbnail:
    """A small RGB image and the name below it."""

    image: "Image"
    name: str


def show_thumbnails(terminal: Terminal, thumbnails: Sequence[Thumbnail]) -> None:
    """Draw images side by side with their names, in as many rows as it takes; several are drawn half as high."""
    if not _draws(terminal):
        return
    window = shutil.get_terminal_size()
    columns = min(THUMBNAIL_COLUMNS, window.columns - 1)
    rows = min(THUMBNAIL_ROWS if len(thumbnails) == 1 else THUMBNAIL_ROWS // 2, window.lines - 3)
    if columns < 1 or rows < 1:
        return
    line: list[tuple[Thumbnail, int, int]] = []
    used = 0
    for thumbnail in thumbnails:
        size = cells(thumbnail.image.size, columns, rows)
        width = max(size[0], MIN_NAME_COLUMNS) + GAP
        if line and used + width > window.columns:
            terminal.stdout.write(_side_by_side(line))
            line, used = [], 0
        line.append((thumbnail, *size))
        used += width
    terminal.stdout.write(_side_by_side(line))
    terminal.stdout.flush()


def _side_by_side(line: Sequence[tuple[Thumbnail, int, int]]) -> str:
    """Draw from the top left corner of the room that newlines made, and put the names below."""
    height = max(rows for _, _, rows in line)
    drawn, names, left = "\n" * height + f"\x1b[{height}A", "", 0
    for thumbnail, columns, rows in line:
        width = max(columns, MIN_NAME_COLUMNS)
        right = f"\x1b[{left}C" if left else ""
        picture = _encode(thumbnail.image, columns, rows)
        if graphics_protocol():
            drawn += f"\r{right}\x1b7{picture.rstrip(chr(10))}\x1b8\r"
        else:
            drawn += "".join(f"\r{right}{row}\n" for row in picture.splitlines()) + f"\x1b[{rows}A"
        name = thumbnail.name if len(thumbnail.name) <= width else f"{thumbnail.name[: width - 1]}…"
        names += set_cell_size(strip_control(name), width + GAP)
        left += width + GAP
    return f"{drawn}\r\x1b[{height}B{names.rstrip()}\n"


def _draws(terminal: Terminal) -> bool:
    """Return whether images can be drawn on this terminal at all."""
    if not terminal.stdout_is_tty or os.environ.get("TERM", "") in ("", "dumb"):
        return False
    if graphics_protocol():
        return True
    return not os.environ.get("NO_COLOR") and _can_write(terminal.stdout, HALF_BLOCK)


def show_preview(terminal: Terminal, image: "Image", *, max_columns: int, max_rows: int) -> None:
    """Draw an RGB ``image`` in at most that many cells, and end the line. Do nothing if stdout is not a terminal."""
    if not _draws(terminal):
        return
    window = shutil.get_terminal_size()
    columns, rows = cells(image.size, min(max_columns, window.columns - 1), min(max_rows, window.lines - 2))
    if columns < 1 or rows < 1:
        return
    terminal.stdout.write(_encode(image, columns, rows))
    terminal.stdout.flush()


def _encode(image: "Image", columns: int, rows: int) -> str:
    match graphics_protocol():
        case "kitty":
            return _kitty(image, columns, rows)
        case "iterm2":
            return _iterm2(image, columns, rows)
        case "sixel":
            return _sixel_cells(image, columns, rows)
        case _:
            return _half_blocks(image, columns, rows, true_colour=_true_colour())


def graphics_protocol() -> str:
    """Return the protocol that this terminal is known to support: "kitty", "iterm2", "sixel" or "".

    Decided by the environment, as querying the terminal could swallow typed keys. tmux and screen pass no protocol
    through.
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
    if program == "vscode":  # ignores images unless a setting allows them
        return ""
    if program in ("iterm.app", "wezterm", "mintty") or env.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if env.get("TERM", "").startswith(("foot", "mlterm", "contour", "yaft")) or program in ("mlterm", "contour"):
        return "sixel"
    return ""


def cells(size: tuple[int, int], max_columns: int, max_rows: int) -> tuple[int, int]:
    """Return the largest (columns, rows) with the aspect ratio of ``size``, (width, height) in pixels.

    >>> cells((400, 200), 32, 10), cells((100, 1000), 32, 10)
    ((32, 8), (2, 10))
    """
    width, height = size
    scale = min(max_columns / width, max_rows * CELL_RATIO / height)
    return max(1, round(width * scale)), max(1, round(height * scale / CELL_RATIO))


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _kitty(image: "Image", columns: int, rows: int) -> str:
    """Encode for kitty's graphics protocol: a PNG in base64 chunks, shown in that many cells."""
    data = base64.standard_b64encode(_png(image, columns, rows)).decode()
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        control = f"a=T,f=100,q=2,c={columns},r={rows}," if number == 0 else ""
        parts.append(f"\x1b_G{control}m={int(number + 1 < len(chunks))};{chunk}\x1b\\")
    return "".join(parts) + "\n"


def _iterm2(image: "Image", columns: int, rows: int) -> str:
    """Encode for iTerm2's inline images, which WezTerm and mintty support too."""
    data = _png(image, columns, rows)
    settings = f"inline=1;size={len(data)};width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={settings}:{base64.standard_b64encode(data).decode()}\x07\n"


def _sixel_cells(image: "Image", columns: int, rows: int) -> str:
    """Encode as sixel, sized to the pixels of the cells."""
    cell_width, cell_height = _cell_pixels()
    return sixel(image.convert("RGB").resize((columns * cell_width, rows * cell_height))) + "\n"


def _cell_pixels() -> tuple[int, int]:
    """Return (width, height) of a character cell in pixels, or a common size if the terminal does not report it."""
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


def sixel(image: "Image") -> str:
    """Return the escape sequence that draws an RGB ``image`` pixel by pixel, without a final newline.

    The format is a palette, then bands of six rows. In a band, each colour draws its pixels as characters of six bits,
    the top row lowest; !COUNT repeats a character, ``$`` returns to the start of the band, ``-`` begins the next.
    """
    import numpy as np
    from PIL import Image as Pillow

    reduced = image.convert("RGB").quantize(SIXEL_COLOURS, dither=Pillow.Dither.FLOYDSTEINBERG)
    palette = reduced.getpalette() or []
    pixels = np.asarray(reduced)
    width, height = image.size
    used = np.unique(pixels)
    parts = [f'\x1bP0;1q"1;1;{width};{height}']
    parts += [f"#{c};2;" + ";".join(str(round(v / 2.55)) for v in palette[3 * c : 3 * c + 3]) for c in used.tolist()]
    for top in range(0, height, SIXEL_BAND):
        band = pixels[top : top + SIXEL_BAND]
        weights = (1 << np.arange(len(band)))[:, None]
        drawn = [f"#{c}" + _runs(((band == c) * weights).sum(0).tolist()) for c in np.unique(band).tolist()]
        parts.append("$".join(drawn) + "-")
    return "".join(parts) + "\x1b\\"


def _runs(bits: list[int]) -> str:
    pieces = []
    for value, run in itertools.groupby(bits):
        count, character = len(list(run)), chr(63 + value)
        pieces.append(f"!{count}{character}" if count > 3 else character * count)
    return "".join(pieces)


def _half_blocks(image: "Image", columns: int, rows: int, *, true_colour: bool = True) -> str:
    """Encode two pixels per cell: the upper half block's foreground and background."""
    from PIL import Image as Pillow

    small = image.convert("RGB").resize((columns, 2 * rows), Pillow.Resampling.BOX)
    data = small.tobytes()
    pixels = [tuple(data[start : start + 3]) for start in range(0, len(data), 3)]
    lines = []
    for row in range(rows):
        line = ""
        for column in range(columns):
            top, bottom = (pixels[(2 * row + half) * columns + column] for half in (0, 1))
            line += f"\x1b[{_colour(38, top, true_colour)};{_colour(48, bottom, true_colour)}m{HALF_BLOCK}"
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
    # 20 pixels per column exceed most fonts; a whole phone photo would be megabytes of base64.
    small = image.convert("RGB")
    small.thumbnail((20 * columns, 20 * CELL_RATIO * rows))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
